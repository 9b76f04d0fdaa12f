"""One step of a path through a model's output, and values and functions put into words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .._errors import RefError, listing, nearest


def pick(value: Any, key: Any, source: object) -> Any:
    """One step of a path: a mapping's key, a field, or an index."""
    if isinstance(key, str):
        if isinstance(value, Mapping) and key in value:
            return value[key]
        if key in _fields(value):
            return getattr(value, key)
        # A model that returns one bare tensor has nothing else to call its logits.
        if isinstance(value, Tensor) and key in ("logits", "output"):
            return value
        names = [str(k) for k in value] if isinstance(value, Mapping) else _fields(value)
        have = listing(sorted(names)) if names else f"no names, only {describe(value)}"
        raise RefError(f"{source!r}: no {key!r} here. {nearest(key, names)}Available: {have}.")
    if isinstance(key, int) and isinstance(value, (tuple, list)):
        if not -len(value) <= key < len(value):
            raise RefError(
                f"{source!r} is out of range: there are {len(value)}, "
                f"so the index is 0..{len(value) - 1} (or negative)."
            )
        return value[key]
    try:
        return value[key]
    except (KeyError, IndexError, TypeError) as error:
        raise RefError(f"{source!r}: {describe(value)} has no [{key!r}] ({error}).") from None


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
    return f"a {type(value).__name__}"


def name_of(fn: Any) -> str:
    """A function as a reader would call it."""
    inner = getattr(fn, "func", fn)  # functools.partial
    return getattr(inner, "__name__", type(inner).__name__)


def show(value: Any) -> str:
    """A value as it stands in code: tensors by shape, functions by name."""
    if isinstance(value, Tensor):
        return f"<tensor {tuple(value.shape)}>" if value.ndim else f"tensor({value.item():g})"
    unnamed = callable(value) and type(value).__repr__ in (object.__repr__, _FUNCTION_REPR)
    return name_of(value) if unnamed or isinstance(value, _BUILTIN) else repr(value)


_FUNCTION_REPR = type(lambda: None).__repr__
_BUILTIN = type(len)


def show_key(key: Any) -> str:
    """An index as it stands between brackets."""
    if isinstance(key, slice):
        ends = ["" if k is None else repr(k) for k in (key.start, key.stop)]
        return ":".join(ends) + ("" if key.step is None else f":{key.step!r}")
    return "..." if key is Ellipsis else repr(key)
