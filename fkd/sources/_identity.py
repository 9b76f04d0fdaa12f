"""What a ref and a model are, in words that another process understands and can compare."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fkd._objective.models import Model, values_of
from fkd._refs.refs import Ref, node

from ._errors import SourceError

_LIBRARIES = ("torch", "fkd", "builtins", "operator", "math", "_operator", "transformers")
"""Whose functions are what their name says; of all others the text counts."""


def identity(ref: Ref) -> str:
    """A digest of what a ref computes: two refs that have one are the same in every process.

    A function counts by its name and its text, a tensor by its values.

    Raises:
      SourceError: a part of it cannot be told from others in another process.
    """
    try:
        return _digest(_told(ref))
    except TypeError as error:
        raise SourceError(
            f"{ref!r} cannot be kept, since another process could not tell what it is: {error}. "
            "Use functions that are defined in a file, and numbers, text and tensors."
        ) from None


def describe_model(model: Model) -> dict[str, Any]:
    """A model as JSON: its class, its structure, and a digest of each of its tensors."""
    module = model.module
    assert isinstance(module, nn.Module)
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    values = {name: values_of(model, name, x) for name, x in tensors.items()}
    return {
        "class": f"{_module_of(type(module))}.{type(module).__qualname__}",
        "structure": _digest(repr(module)),
        "inputs": None if model.inputs is None else _digest(_function(model.inputs)),
        "outputs": None if model.outputs is None else _digest(_function(model.outputs)),
        "tensors": {name: describe_tensor(x) for name, x in values.items()},
    }


def _module_of(x: Any) -> str | None:
    """The module of a class or a function: of a file that is run as a program, its own name, by
    which another program imports it."""
    name = getattr(x, "__module__", None)
    if name != "__main__":
        return name
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    return spec.name if spec is not None else Path(file).stem if file else name


def describe_tokenizer(tokenizer: Any) -> dict[str, Any]:
    """A tokenizer as JSON: its class, and digests of its vocabulary, of what it does besides (where
    it can say so), of its special tokens and of its chat template.

    Raises:
      SourceError: it has no vocabulary.
    """
    vocabulary = getattr(tokenizer, "get_vocab", None)
    if vocabulary is None:
        raise SourceError(
            f"cache: tokenizer is a {type(tokenizer).__name__}; one with get_vocab() is expected, "
            "such as those of transformers and tokenizers. Say what you know of others in about=."
        )
    words: dict[str, int] = vocabulary()
    fast = getattr(tokenizer, "backend_tokenizer", tokenizer)
    rules = fast.to_str() if hasattr(fast, "to_str") else ""
    template = getattr(tokenizer, "chat_template", None)
    special = getattr(tokenizer, "special_tokens_map", {})
    return {
        "class": type(tokenizer).__name__,
        "size": len(words),
        "vocabulary": short(sorted(words.items())),
        "rules": short(json.loads(rules) if rules else None),
        "special": {name: str(token) for name, token in sorted(special.items())},
        "chat_template": None if template is None else short(template),
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def describe_tensor(x: Tensor) -> str:
    """A tensor in words: its dtype, its shape, and a digest of its numbers."""
    flat = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    raw: Any = flat.numpy()
    values = hashlib.sha256(memoryview(raw)).hexdigest()[:16]
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)} {values}"


def _told(value: Any) -> str:
    if isinstance(value, Ref):
        part: Any = node(value)
        fields = [f"{f.name}={_told(getattr(part, f.name))}" for f in dataclasses.fields(part)]
        return f"{type(part).__name__}({', '.join(fields)})"
    if isinstance(value, Tensor):
        return f"tensor({describe_tensor(value)})"
    if value is None or value is Ellipsis or isinstance(value, bool | int | float | str | bytes):
        return repr(value)
    if isinstance(value, torch.dtype | torch.device):
        return repr(value)
    if isinstance(value, slice):
        return f"slice({_told((value.start, value.stop, value.step))})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_told(k)}: {_told(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}({', '.join(map(_told, value))})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return f"{type(value).__module__}.{type(value).__qualname__} {_told(fields)}"
    if callable(value):
        return _function(value)
    raise TypeError(f"it holds a {type(value).__name__}")


def _function(fn: Any) -> str:
    if isinstance(fn, functools.partial):
        return f"partial({_function(fn.func)}, {_told(fn.args)}, {_told(fn.keywords)})"
    if isinstance(fn, nn.Module):
        return _layer(fn)
    owner = getattr(fn, "__objclass__", fn)  # of a method that is written in C, such as Tensor.mean
    name = f"{_module_of(owner)}.{getattr(fn, '__qualname__', '')}"
    if name.partition(".")[0] in _LIBRARIES or getattr(fn, "__module__", "") is None:
        return name if "<" not in name else f"{name} {_text(fn)}"
    if not inspect.isfunction(fn):
        if isinstance(fn, type) or inspect.isbuiltin(fn):
            return name
        raise TypeError(f"it calls a {type(fn).__name__}")
    closed = [_told(cell.cell_contents) for cell in fn.__closure__ or ()]
    defaults = (fn.__defaults__, fn.__kwdefaults__)
    return f"{name} {_text(fn)} {closed} {_told(defaults)}"


def _layer(module: nn.Module) -> str:
    """A layer of torch without a file of its own: what it shows of itself, and its numbers."""
    for part in module.modules():
        kind = type(part)
        if (_module_of(kind) or "").partition(".")[0] != "torch":
            raise TypeError(f"it calls a {kind.__name__}")
    tensors = {n: describe_tensor(x) for n, x in module.state_dict().items()}
    return f"{type(module).__name__} {_digest(repr(module))} {_told(tensors)} {module.training}"


def _text(fn: Any) -> str:
    try:
        return _digest(inspect.getsource(fn))
    except (OSError, TypeError):
        code = getattr(fn, "__code__", None)
        if code is None:
            raise TypeError("it calls a function without a text") from None
        constants = [c for c in code.co_consts if not inspect.iscode(c)]
        return _digest(repr((code.co_code, code.co_names, constants)))


def short(value: Any) -> str:
    """The digest of something that is JSON."""
    return _digest(json.dumps(value, sort_keys=True))[:8]
