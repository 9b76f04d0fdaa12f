"""One step of a path through a model's output, and values and functions put into words."""

from __future__ import annotations

import dataclasses
import keyword
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .._base.errors import RefError, listing, nearest
from .._base.sparse import SparseDistribution

PROPERTIES = ("shape", "ndim", "dtype", "device", "T", "mT", "H", "mH", "real", "imag")
"""What a tensor says of itself without being called."""


METHODS = frozenset(n for n in dir(Tensor) if n[0] != "_" and callable(getattr(Tensor, n)))
"""What is called of a tensor."""


RESULTS = ("values", "indices", "sign", "logabsdet", "U", "S", "Vh", "Q", "R")
"""What torch calls the parts of a result such as that of `torch.max(x, -1)`."""


def pick(value: Any, key: Any, source: object, *, bare: str = "", offered: bool = False) -> Any:
    """One step of a path: a mapping's key, a field, or an index.

    Args:
      value: that of the ref before the step.
      key: the step.
      source: the ref, as it stands in messages.
      bare: how the value itself is written, if it is a tensor and not a record.
      offered: whether models offer a method of that name.
    """
    if isinstance(key, str):
        return _named(value, key, source, bare, offered)
    if isinstance(key, int) and isinstance(value, (tuple, list)):
        if not -len(value) <= key < len(value):
            raise RefError(
                f"{source!r} is out of range: there are {len(value)}, "
                f"so the index is 0..{len(value) - 1} (or negative)."
            )
        return value[key]
    try:
        return _at(value, key)
    except (KeyError, IndexError, TypeError) as error:
        raise RefError(f"{source!r}: {describe(value)} has no [{key!r}] ({error}).") from None


def _at(value: Any, key: Any) -> Any:
    """`value[key]`; a number in a tensor stays one, which a compiler would have to read."""
    keys = list(key) if isinstance(key, tuple) else [key]
    tensors = [i for i, k in enumerate(keys) if isinstance(k, Tensor)]
    if isinstance(value, Tensor) and len(tensors) == 1 and Ellipsis not in _others(keys):
        (place,) = tensors
        number = keys[place]
        integer = not (number.is_floating_point() or number.dtype == torch.bool)
        if number.ndim == 0 and integer:
            keys[place] = number[None]
            gone = sum(isinstance(k, int) for k in keys[:place])
            return value[tuple(keys)].squeeze(place - gone)
    return value[key]


def _others(keys: list[Any]) -> list[Any]:
    return [k for k in keys if not isinstance(k, Tensor)]


def _named(value: Any, key: str, source: object, bare: str, offered: bool) -> Any:
    if isinstance(value, Mapping) and key in value:
        return value[key]
    if isinstance(value, tuple) and key in RESULTS and hasattr(value, key):
        return getattr(value, key)
    if key in _fields(value):
        return getattr(value, key)
    names = [str(k) for k in value] if isinstance(value, Mapping) else _fields(value)
    if isinstance(value, Tensor):
        # A model that returns one bare tensor has nothing else to call its logits.
        if key in ("logits", "output"):
            return value
        if key in PROPERTIES:
            return getattr(value, key)
        called = f" {_called(source)}" if offered or _is_method(value, key) else ""
        raise RefError(
            f"{source!r}: no {key!r} here, only {describe(value)}, which is written "
            f"{bare or 'without a name'}.{called}"
        )
    if not names and _is_method(value, key):
        raise RefError(f"{source!r}: {describe(value)} has no names. {_called(source)}")
    have = listing(sorted(names)) if names else f"no names, only {describe(value)}"
    called = f" {_called(source)}" if offered else ""
    if isinstance(value, tuple | list) and not names and value and bare:
        whole = repr(source).removesuffix(f".{key}").removesuffix(f"[{key!r}]")
        places = dict.fromkeys((f"{whole}[0]", f"{whole}[{len(value) - 1}]"))
        to = " or " if len(value) == 2 else " to "
        called = f" Take one by its place: {to.join(places)}.{called}"
    raise RefError(f"{source!r}: no {key!r} here. {nearest(key, names)}Available: {have}.{called}")


def _is_method(value: Any, name: str) -> bool:
    return not name.startswith("_") and callable(getattr(value, name, None))


def _called(source: object) -> str:
    return f"A method is called: {source!r}(...)."


def method_of(value: Any, name: str, source: object) -> Any:
    """A method of a value, for a ref that calls it."""
    if isinstance(value, Tensor) and name in METHODS:
        return getattr(value, name)
    is_output = isinstance(value, Mapping) and name in value
    is_output = is_output or name in _fields(value)
    if _is_method(value, name) and not is_output:
        return getattr(value, name)
    if is_output or (isinstance(value, Tensor) and name in ("logits", "output", *PROPERTIES)):
        raise RefError(
            f"{source!r}.{name} is a value, not a method: leave out the brackets behind it. "
            f"To apply a function: fkd.call(fn, {source!r}.{name})."
        )
    methods = [n for n in dir(type(value)) if not n.startswith("_") and not n.endswith("_")]
    raise RefError(
        f"{source!r}.{name}(...): {describe(value)} has no method {name!r}. "
        f"{nearest(name, methods)}To apply a function: fkd.call(fn, {source!r})."
    )


def _fields(value: Any) -> list[str]:
    if isinstance(value, tuple):  # asked first: torch 2.11 cannot trace is_dataclass of one
        return list(getattr(value, "_fields", ()))
    if dataclasses.is_dataclass(value):
        return [f.name for f in dataclasses.fields(value)]
    return []


def describe(value: Any) -> str:
    """A value in a few words: the shape of a tensor, the length of a tuple."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, Mapping):
        return f"a mapping with {listing(map(str, value))}"
    if isinstance(value, SparseDistribution):
        return f"{value.known} of the classes of {value.shape}"
    return f"a {type(value).__name__}"


def name_of(fn: Any) -> str:
    """A function as a reader would call it."""
    inner = getattr(fn, "func", fn)  # functools.partial
    return getattr(inner, "__name__", type(inner).__name__)


def show(value: Any) -> str:
    """A value as it stands in code: tensors by shape, functions by name."""
    if isinstance(value, Tensor):
        return f"<tensor {tuple(value.shape)}>" if value.ndim else f"tensor({value.item():g})"
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, (set, frozenset)):  # whose order differs from process to process
        inner = ", ".join(sorted(map(show, value)))
        return f"{type(value).__name__}({{{inner}}})" if inner else f"{type(value).__name__}()"
    if type(value) is dict:
        return "{" + ", ".join(f"{show(k)}: {show(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (tuple, list)) and type(value) in (tuple, list):
        inner = ", ".join(map(show, value)) + (
            "," if type(value) is tuple and len(value) == 1 else ""
        )
        return f"({inner})" if type(value) is tuple else f"[{inner}]"
    unnamed = callable(value) and type(value).__repr__ in (object.__repr__, _FUNCTION_REPR)
    return name_of(value) if unnamed or isinstance(value, _BUILTIN) else repr(value)


_FUNCTION_REPR = type(lambda: None).__repr__
_BUILTIN = type(len)


def is_attribute(name: str) -> bool:
    """Whether an output can be written with a dot."""
    return name.isidentifier() and not (name.startswith("_") or keyword.iskeyword(name))


def show_key(key: Any) -> str:
    """An index as it stands between brackets."""
    if isinstance(key, slice):
        ends = ["" if k is None else show(k) for k in (key.start, key.stop)]
        return ":".join(ends) + ("" if key.step is None else f":{show(key.step)}")
    return "..." if key is Ellipsis else show(key)
