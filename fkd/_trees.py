"""Nested dicts, tuples and lists of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor


def map_tensors(fn: Callable[[Tensor], Any], batch: Any) -> Any:
    """The batch with `fn` applied to every tensor."""
    if isinstance(batch, Tensor):
        return fn(batch)
    if isinstance(batch, Mapping):
        return {key: map_tensors(fn, value) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(fn, value) for value in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(map_tensors(fn, value) for value in batch)
    return batch
