"""Batches: what a loader yields, and what the rest of the package sees of it.

A batch is normalised once, at the edge, where it enters a step, an evaluation or a score:

    Batch         tensors, arrays, numbers, text, ... in mappings, tuples, lists   (a loader's)
      | normalised(batch, device)
    TensorBatch   tensors in dicts, tuples, lists                                  (everyone's)

Whoever is given a `TensorBatch` walks over it with `optree`, to which dicts, tuples, lists and
named tuples (`Packed`) are trees.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import NamedTuple, cast

import numpy as np
import optree
import torch
from torch import Tensor

from fkd._base.sparse import SparseDistribution
from fkd._base.trees import map_tensors
from fkd._base.types import Batch, TensorBatch

from .packing import Packed

_ARRAYS = (np.ndarray, np.generic)  # a tuple, since Dynamo cannot trace a union of these


def normalised(batch: Batch, device: torch.device | None = None) -> TensorBatch:
    """The batch as tensors in dicts, tuples and lists, on a device.

    Numbers and arrays become tensors; a compiled step would otherwise be compiled again for
    every value. Mappings of any type and dataclasses become dicts. What is not a tensor (text, ids
    as strings, None) is left out of mappings, and is None in tuples and lists, whose places have
    numbers.
    Of a batch that is normalised already, this is a copy of the containers.

    Args:
      batch: what a loader yields.
      device: where to; None leaves every tensor where it is. Host memory that is pinned is
        copied without waiting.

    Raises:
      ValueError: there is not a tensor in it, and it is not None or an empty container either.

    Example:
      >>> normalised({"x": torch.ones(1), "weight": 2, "text": "left out", "pair": (3, None)})
      {'x': tensor([1.]), 'weight': tensor(2), 'pair': (tensor(3), None)}
    """
    tensors = _normalised(batch, device)
    if tensors is None and batch is not None:
        raise ValueError(
            f"a batch is a {type(batch).__name__} without a tensor; a tensor, or dicts, tuples, "
            "lists and dataclasses of tensors, arrays and numbers are expected. Convert it in the "
            "loader's collate_fn."
        )
    return tensors


def _normalised(batch: Batch, device: torch.device | None) -> TensorBatch:
    if isinstance(batch, Tensor):
        if batch.is_meta and device is not None and device.type != "meta":
            raise ValueError(
                f"a batch has a tensor {tuple(batch.shape)} on the meta device, where tensors have "
                "no values. Make it on the CPU."
            )
        # Not towards the host, which would read the copy before it is there.
        return batch if device is None else batch.to(device, non_blocking=device.type != "cpu")
    if isinstance(batch, _ARRAYS):
        return torch.as_tensor(batch, device=device) if batch.dtype.kind in "biuf" else None
    if isinstance(batch, bool | int | float):
        return torch.tensor(batch, device=device)
    if isinstance(batch, SparseDistribution):
        still = device is None
        return batch if still else batch.to(device, non_blocking=device.type != "cpu")
    if isinstance(batch, Mapping):
        moved = {key: _normalised(value, device) for key, value in batch.items()}
        return {key: value for key, value in moved.items() if value is not None}
    if isinstance(batch, tuple | list):
        inside = [_normalised(value, device) for value in batch]
        if isinstance(batch, tuple) and hasattr(batch, "_fields"):
            return cast("Callable[..., TensorBatch]", type(batch))(*inside)
        if batch and all(value is None for value in inside):
            return None
        return tuple(inside) if isinstance(batch, tuple) else inside
    if is_dataclass(batch) and not isinstance(batch, type):
        return _normalised({f.name: getattr(batch, f.name) for f in fields(batch)}, device)
    return None


SAMPLE = 64
"""Numbers of every tensor that `sampled_digest` reads."""


def sampled_digest(batch: TensorBatch) -> int:
    """A number for the shapes and some values of a batch: enough to tell shuffled data apart."""
    digest = 0
    for place, x in leaves(batch):
        digest = zlib.crc32(f"{place} {x.dtype} {tuple(x.shape)}".encode(), digest)
        if x.device.type == "cpu" and x.numel():
            flat = x.detach().reshape(-1)
            some = flat[:: max(1, flat.numel() // SAMPLE)]
            digest = zlib.crc32(repr(some.tolist()).encode(), digest)
    return digest


class Signature(NamedTuple):
    """What a compiled step is compiled for. Two signatures are equal, and have one hash, where
    the batches have the same structure, shapes and dtypes.

    Attributes:
      tree: the structure.
      shapes, dtypes: of the tensors, in the order of the structure.
    """

    tree: optree.PyTreeSpec
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]

    @property
    def places(self) -> list[str]:
        """The code of the place of every tensor, such as `batch['text']['input_ids']`."""
        return [accessor.codify("batch") for accessor in self.tree.accessors()]


def signature(batch: TensorBatch) -> Signature:
    """Structure, shapes and dtypes of a batch.

    Example:
      >>> signature({"x": torch.ones(2, 3), "y": [torch.ones(2)]}).places
      ["batch['x']", "batch['y'][0]"]
    """
    tensors, tree = optree.tree_flatten(_tree(batch))
    return Signature(tree, tuple([x.shape for x in tensors]), tuple([x.dtype for x in tensors]))


def structure_change(first: Signature, now: Signature) -> str | None:
    """How a batch differs in structure from the first one, in words; None if it does not.

    The structure is the places of the tensors, their dtypes and their numbers of axes; the
    lengths of the axes are free.
    """
    before, after = _forms(first), _forms(now)
    lost = [place for place in before if place not in after]
    new = [place for place in after if place not in before]
    changed = [
        f"{place} was {before[place]} and is {after[place]}"
        for place in before
        if place in after and before[place] != after[place]
    ]
    told = [f"missing: {', '.join(lost)}"] if lost else []
    told += [f"new: {', '.join(new)}"] if new else []
    return "; ".join(told + changed) or None


def _forms(signature: Signature) -> dict[str, str]:
    names = (str(dtype).removeprefix("torch.") for dtype in signature.dtypes)
    return {
        place: f"{name} with {len(shape)} axes"
        for place, name, shape in zip(signature.places, names, signature.shapes, strict=True)
    }


def leaves(batch: TensorBatch) -> list[tuple[str, Tensor]]:
    """Every tensor of the batch with the code of its place."""
    accessors, tensors, _ = optree.tree_flatten_with_accessor(_tree(batch))
    return [(a.codify("batch"), x) for a, x in zip(accessors, tensors, strict=True)]


def examples_in(batch: TensorBatch) -> int:
    """The number of examples: the length of the first axis that most of the tensors have (the
    greatest of several such lengths); 1 if none has an axis."""
    counts = Counter(x.shape[0] for x in optree.tree_leaves(_tree(_by_example(batch))) if x.ndim)
    return max(counts, key=lambda length: (counts[length], length), default=1)


def tokens_in(batch: TensorBatch) -> int:
    """How many tokens a batch holds, as far as the host knows: those of its attention mask, or
    the places of its `input_ids`; 0 if it has neither."""
    matrices = [(place, x) for place, x in leaves(batch) if x.ndim >= 2]
    for place, x in matrices:
        if "attention_mask" in place and x.device.type == "cpu":
            return int(np.count_nonzero(x.numpy()))
    return next((x.numel() for place, x in matrices if "input_ids" in place), 0)


def batch_size(batch: TensorBatch) -> int:
    """The number of examples: the length of the first axis, which all tensors share.

    Raises:
      ValueError: the tensors have first axes of different lengths.
    """
    sizes = {place: x.shape[0] for place, x in leaves(_by_example(batch)) if x.ndim}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"the batch cannot be split: its tensors have first axes of different lengths: "
            f"{', '.join(f'{place}: {n}' for place, n in sizes.items())}. The first axis of "
            "every tensor must be the examples. Of a list with one tensor for each example (boxes, "
            "say) make one tensor in the collate function, padded to the longest, with a mask."
        )
    return next(iter(sizes.values()), 1)


def split(batch: TensorBatch, parts: int) -> list[TensorBatch]:
    """The batch in parts of (nearly) equal size along its first axis; 0-d tensors in each.

    A batch that was packed (`pack`) comes apart into the parts that it was packed in.

    Raises:
      ValueError: fewer examples than parts, or a batch that was packed in other parts.
    """
    size = batch_size(batch)
    if size < parts:
        raise ValueError(
            f"accumulate={parts}, and the batch has only {size} examples. If it is the short last "
            f"batch of an epoch: DataLoader(..., drop_last=True), or fewer parts."
        )
    for packed in optree.tree_leaves(_tree(batch), is_leaf=_is_packed):
        if isinstance(packed, Packed) and packed.positions.shape[0] % parts:
            raise ValueError(
                f"accumulate={parts}, and the batch is packed in {packed.positions.shape[0]} "
                "part(s), whose positions are of the rows of the whole. Pack it in as many parts: "
                f"pack(mask, parts={parts})."
            )

    def part(index: int) -> Callable[[Tensor], Tensor]:
        return lambda x: x.tensor_split(parts)[index] if x.ndim else x

    return [map_tensors(part(index), batch) for index in range(parts)]


def _is_packed(x: object) -> bool:
    return isinstance(x, Packed)


def _by_example(batch: TensorBatch) -> TensorBatch:
    """The batch without the tensors whose first axis is not the examples."""

    def by_example(x: object) -> object:
        return {"mask": x.mask} if isinstance(x, Packed) else x

    return cast("TensorBatch", optree.tree_map(by_example, _tree(batch), is_leaf=_is_packed))


def _tree(batch: TensorBatch) -> optree.PyTree[Tensor]:
    """The batch as what optree calls a tree."""
    return cast("optree.PyTree[Tensor]", batch)
