"""The examples of a batch that one of several ranks has."""

from __future__ import annotations

from collections.abc import Callable

import optree
from torch import Tensor

from fkd._base.trees import map_tensors
from fkd._base.types import TensorBatch
from fkd.parallel._objective import Share
from fkd.parallel._ranks import Ranks

from .batch import Signature, batch_size, signature, split
from .packing import Packed


def shares_of(batch: TensorBatch, ranks: Ranks, *, parts: int = 1) -> list[Share]:
    """What a rank has of every part of a batch, in memory of its own.

    A batch is first cut into the parts of an accumulation, and each of these into rows for the
    ranks, so that a part holds the same examples whatever the number of ranks. No example is
    there twice: the first ranks have one more than the others, or all that there are.

    Args:
      batch: the whole batch, as one process would use it.
      ranks: among which it is divided.
      parts: in how many parts it is run.

    Raises:
      ValueError: the first axes of its tensors have different lengths, so that they are not the
        examples; or it is packed in other parts.
    """
    batches = [batch] if parts == 1 else split(batch, parts)
    return [_share(part, ranks) for part in batches]


def _share(batch: TensorBatch, ranks: Ranks) -> Share:
    count = batch_size(batch)
    _refuse_packed(batch, count, ranks)
    rows = tuple(count // ranks.size + (r < count % ranks.size) for r in range(ranks.size))
    length = max(rows[ranks.rank], 1)
    begin = sum(rows[: ranks.rank]) if rows[ranks.rank] else 0

    def of_rank(x: Tensor) -> Tensor:
        if not x.ndim:
            return x
        if x.shape[0] == count:
            return x[begin : begin + length].clone()
        return x.tensor_split(ranks.size)[ranks.rank].clone()  # the positions of a packed batch

    return Share(map_tensors(of_rank, batch), rows)


def _refuse_packed(batch: TensorBatch, count: int, ranks: Ranks) -> None:
    """A packed batch can be divided only where it was packed in parts for the ranks."""
    packed = optree.tree_leaves(batch, is_leaf=_is_packed)  # pyright: ignore[reportArgumentType]
    for x in packed:
        if isinstance(x, Packed) and (x.positions.shape[0] % ranks.size or count % ranks.size):
            raise ValueError(
                f"the batch of {count} examples is packed in {x.positions.shape[0]} part(s), and "
                f"{ranks.size} ranks divide it. Pack it in a multiple of that: "
                f"pack(mask, parts={ranks.size}), from batches with a multiple of {ranks.size} "
                "examples."
            )


def _is_packed(x: object) -> bool:
    return isinstance(x, Packed)


def moved(shares: list[Share], move: Callable[[TensorBatch], TensorBatch]) -> list[Share]:
    """The shares on a device."""
    return [Share(move(share.batch), share.rows) for share in shares]


def share_signature(shares: list[Share]) -> tuple[tuple[Signature, tuple[int, ...]], ...]:
    """What a step over ranks is compiled for."""
    return tuple((signature(share.batch), share.rows) for share in shares)
