"""Batches: whatever a loader yields, as nested dicts, tuples and lists of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fkd._trees import map_tensors
from fkd._types import Batch

from .packing import Packed


def tensors_only(batch: Batch, device: torch.device | None = None) -> Any:
    """The batch on a device, without what is no tensor (text, ids as strings, None).

    Without a device, everything stays where it is. Numbers and arrays become tensors; a compiled
    step would otherwise be compiled anew for every value. Host memory that is pinned is copied
    without waiting.
    """
    if isinstance(batch, Tensor):
        # Not towards the host, which would read the copy before it is there.
        return batch if device is None else batch.to(device, non_blocking=device.type != "cpu")
    if isinstance(batch, np.ndarray | np.generic):
        return torch.as_tensor(batch, device=device) if batch.dtype.kind in "biuf" else None
    if isinstance(batch, bool | int | float):
        return torch.tensor(batch, device=device)
    if isinstance(batch, Mapping):
        moved = {key: tensors_only(value, device) for key, value in batch.items()}
        return {key: value for key, value in moved.items() if value is not None}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(tensors_only(value, device) for value in batch))
    if isinstance(batch, tuple | list):
        moved = [tensors_only(value, device) for value in batch]
        if batch and all(value is None for value in moved):
            return None
        return tuple(moved) if isinstance(batch, tuple) else moved
    return None


def leaves(batch: Any, path: str = "batch") -> list[tuple[str, Tensor]]:
    """Every tensor of the batch with the code of its place."""
    if isinstance(batch, Tensor):
        return [(path, batch)]
    if isinstance(batch, Mapping):
        inside = [(f"{path}[{key!r}]", value) for key, value in batch.items()]
    elif isinstance(batch, tuple | list):
        inside = [(f"{path}[{i}]", value) for i, value in enumerate(batch)]
    else:
        return []
    return [leaf for place, value in inside for leaf in leaves(value, place)]


def signature(batch: Any) -> tuple[Any, ...]:
    """Structure, shapes and dtypes: what a compiled step is compiled for."""
    return tuple((place, tuple(x.shape), x.dtype) for place, x in leaves(batch))


def examples_in(batch: Any) -> int:
    """The number of examples: the length of the first axis of the first tensor that has one."""
    return next((x.shape[0] for _, x in leaves(_by_example(batch)) if x.ndim), 1)


def batch_size(batch: Any) -> int:
    """The number of examples: the length of the first axis, which all tensors share.

    Raises:
      ValueError: the tensors have first axes of different lengths.
    """
    sizes = {place: x.shape[0] for place, x in leaves(_by_example(batch)) if x.ndim}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"the batch cannot be split: its tensors have first axes of different lengths: "
            f"{', '.join(f'{place}: {n}' for place, n in sizes.items())}. The first axis of "
            "every tensor must be the examples."
        )
    return next(iter(sizes.values()), 1)


def split(batch: Any, parts: int) -> list[Any]:
    """The batch in parts of (nearly) equal size along its first axis; 0-d tensors in each.

    A batch that was packed (`pack`) comes apart into the parts that it was packed in.

    Raises:
      ValueError: fewer examples than parts, or a batch that was packed in other parts.
    """
    size = batch_size(batch)
    if size < parts:
        raise ValueError(f"accumulate={parts}, and the batch has only {size} examples.")
    for packed in _packed_in(batch):
        if packed.positions.shape[0] % parts:
            raise ValueError(
                f"accumulate={parts}, and the batch is packed in {packed.positions.shape[0]} "
                "part(s), whose positions are of the rows of the whole. Pack it in as many parts: "
                f"pack(mask, parts={parts})."
            )

    def part(index: int) -> Any:
        return map_tensors(lambda x: x.tensor_split(parts)[index] if x.ndim else x, batch)

    return [part(index) for index in range(parts)]


def _packed_in(batch: Any) -> list[Packed]:
    """Every `Packed` of a batch."""
    if isinstance(batch, Packed):
        return [batch]
    if not isinstance(batch, Mapping | tuple | list):
        return []
    inside = batch.values() if isinstance(batch, Mapping) else batch
    return [found for value in inside for found in _packed_in(value)]


def _by_example(batch: Any) -> Any:
    """The batch without the tensors whose first axis is not the examples."""
    if isinstance(batch, Packed):
        return {"mask": batch.mask}
    if isinstance(batch, Mapping):
        return {key: _by_example(value) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return [_by_example(value) for value in batch]
    return batch
