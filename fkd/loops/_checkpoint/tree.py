"""A tree as JSON and a flat dict of tensors, and back. No code is ever stored or run."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fkd.parallel._shards import is_cut, local

from .._base.errors import DamagedError

Tree: TypeAlias = Any
"""Dicts, lists and tuples of tensors, ints, floats, bools, strings and None."""

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8),
        *(torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool),
        *(torch.complex128, torch.complex64),
        *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
        *([torch.float8_e8m0fnu] if hasattr(torch, "float8_e8m0fnu") else []),
    )
}


def encode(tree: Tree) -> tuple[Any, dict[str, Tensor]]:
    """Split a tree into JSON and tensors.

    A tensor that occurs twice (a tied weight: the same memory read in the same way) is one
    entry, named by its first path. One that is cut over ranks is one entry, too.

    Args:
      tree: see `Tree`. Dict keys may be any scalar; their order is kept.

    Returns:
      The JSON, and the tensors by name.

    Raises:
      TypeError: a leaf or container that is none of these; the message names its path.
    """
    tensors: dict[str, Tensor] = {}
    seen: dict[tuple[Any, ...], str] = {}

    def visit(x: Any, path: tuple[str, ...]) -> Any:
        if isinstance(x, Tensor):
            return {"tensor": _name(x, path, tensors, seen)}
        if type(x) in (dict, OrderedDict):
            tag = "dict" if type(x) is dict else "ordered"
            return {tag: [[_scalar(k, path), visit(v, (*path, str(k)))] for k, v in x.items()]}
        if type(x) is tuple:
            return {"tuple": [visit(v, (*path, str(i))) for i, v in enumerate(x)]}
        if type(x) is list:
            return [visit(v, (*path, str(i))) for i, v in enumerate(x)]
        return _scalar(x, path)

    return visit(tree, ()), tensors


def decode(data: Any, tensors: Mapping[str, Tensor]) -> Tree:
    """The tree that `encode` split.

    Raises:
      DamagedError: it is not what `encode` makes.
    """
    if isinstance(data, list):
        return [decode(x, tensors) for x in data]
    if not isinstance(data, dict):
        return data
    if len(data) != 1:
        raise DamagedError(f"its tree has an object of {len(data)} fields; one is expected")
    ((tag, content),) = data.items()
    if tag in _SCALARS:
        return _scalar_of(tag, content)
    if tag == "tensor":
        if not isinstance(content, str) or content not in tensors:
            raise DamagedError(f"its tree names a tensor {content!r:.80} that is not there")
        return tensors[content]
    if tag not in _CONTAINERS:
        raise DamagedError(f"its tree has an unknown kind of value: {tag!r:.80}")
    if not isinstance(content, list):
        raise DamagedError(f"its tree has a {tag} that is not a list")
    if tag == "tuple":
        return tuple(decode(x, tensors) for x in content)
    return _CONTAINERS[tag](_pair(pair, tensors) for pair in content)


_CONTAINERS: dict[str, Any] = {"tuple": tuple, "dict": dict, "ordered": OrderedDict}
_SCALARS = {"int": re.compile("-?[0-9a-f]+"), "float": re.compile("nan|-?inf")}


def _scalar_of(tag: str, content: Any) -> int | float:
    """An integer or float that JSON does not have."""
    if not isinstance(content, str) or not _SCALARS[tag].fullmatch(content):
        raise DamagedError(f"its tree has {content!r:.80} for a {tag}")
    return int(content, 16) if tag == "int" else float(content)


def _pair(pair: Any, tensors: Mapping[str, Tensor]) -> tuple[Any, Any]:
    if not isinstance(pair, list) or len(pair) != 2:
        raise DamagedError("its tree has a dict with something else than pairs")
    key = decode(pair[0], tensors)
    if key is not None and type(key) not in (bool, int, float, str):
        raise DamagedError(f"its tree has a {type(key).__name__} for the key of a dict")
    return key, decode(pair[1], tensors)


def _scalar(x: Any, path: tuple[str, ...]) -> Any:
    if x is None or type(x) in (bool, str):
        return x
    if type(x) is int:
        # JSON readers stop at 64 bits, and Python's own at 4300 digits.
        return x if x.bit_length() < 64 else {"int": f"{x:x}"}
    if type(x) is float:
        return x if math.isfinite(x) else {"float": repr(x)}
    kind = f"{type(x).__module__}.{type(x).__qualname__}"
    raise TypeError(
        f"save: {_where(path)} is a {kind}; a checkpoint holds "
        "dict, list, tuple, Tensor, int, float, bool, str and None. Convert it to one of these."
    )


def _name(
    x: Tensor, path: tuple[str, ...], tensors: dict[str, Tensor], seen: dict[tuple[Any, ...], str]
) -> str:
    _check(x, path)
    here: Tensor = local(x)
    place = here.device, here.data_ptr(), here.dtype, x.shape, here.stride()
    key = (*place, here.is_conj(), here.is_neg())
    if here.numel() and key in seen:
        return seen[key]
    name = "/".join(path) or "tensor"
    while name in tensors or name == "__metadata__":  # a key that holds "/" can collide
        name += "'"
    tensors[name], seen[key] = x if is_cut(x) else x.detach(), name
    return name


def _check(x: Tensor, path: tuple[str, ...]) -> None:
    kind = None
    if type(x) not in (Tensor, nn.Parameter) and not is_cut(x):
        kind = f"a {type(x).__name__}"
    elif x.layout is not torch.strided or x.is_quantized:
        kind = f"a tensor of layout {x.layout}, dtype {x.dtype}"
    elif x.is_meta:
        kind = "a meta tensor, which holds no values"
    elif str(x.dtype).removeprefix("torch.") not in DTYPES:
        kind = f"a tensor of dtype {x.dtype}"
    if kind:
        raise TypeError(
            f"save: {_where(path)} is {kind}; a plain dense tensor is expected. "
            "Gather or convert it first."
        )


def _where(path: tuple[str, ...]) -> str:
    return "/".join(path) or "the tree"
