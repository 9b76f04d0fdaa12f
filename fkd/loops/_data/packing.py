"""Only the positions that count: packed by the loader, gathered in front of heads and losses.

In language-model data 30 to 70 % of the positions are prompt or padding. The loader knows which
ones count, on the CPU, so their number becomes a shape and the device never has to say it:

    targets = next_tokens(labels)  # in the collate function
    packed = pack(targets != -100, multiple=256)
    fields = {"input_ids": ids, "targets": targets, "packed": packed}

    def rows(values):  # in the objective
        return fkd.call(take, values, batch.packed)

    term(
        head_divergence,
        rows(student.hidden_states[-1]), student.param("lm_head.weight"),
        rows(teacher.hidden_states[-1]), teacher.param("lm_head.weight"),
        labels=rows(batch.targets), where=batch.packed.kept, divergence=divergence,
    )
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar, overload

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from fkd._base.sparse import SparseDistribution

Sparse = TypeVar("Sparse", bound=SparseDistribution)


class Packed(NamedTuple):
    """Which positions of a batch count, in a static shape. Part of the batch.

    A batch that is split (`train_step(accumulate=k)`) is packed in parts, each with positions
    of its own rows: `pack(mask, parts=k)`.

    Attributes:
      positions: `[parts, capacity]`, where in its part (flattened, `row * length + column`) each
        packed row comes from; no place is there twice.
      kept: `[parts, capacity]`, True for positions that count, False for padding.
      mask: `[rows, length]`, the positions that count, unpacked.
    """

    positions: Int[Tensor, "parts capacity"]
    kept: Bool[Tensor, "parts capacity"]
    mask: Bool[Tensor, "rows length"]


def pack(
    mask: Bool[Tensor, "rows length"] | Int[Tensor, "rows length"],
    *,
    multiple: int = 256,
    capacities: Sequence[int] | None = None,
    parts: int = 1,
) -> Packed:
    """The positions of a mask that count, first in their order, then others to fill up.

    Every capacity is one compilation. To have few, give `capacities`: for instance
    `bucket_lengths(counts, 3, multiple=256)` with the counts of some batches.

    Args:
      mask: `[rows, length]` on the CPU, True (or 1) where a position counts.
      multiple: the capacity is a multiple of this (for heads that go chunk by chunk, best of
        their `chunk_size`)...
      capacities: ...or the least of these that is enough. In both cases at most the number of
        positions.
      parts: into how many parts the batch will be split: the `accumulate` of `train_step`. It
        must divide the number of rows.

    Returns:
      A `Packed`, whose capacity is that of the part with the most positions that count.

    Raises:
      ValueError: more positions count than the largest capacity; a mask on another device,
        whose count the host would have to wait for; parts that do not divide the rows.

    Example:
      >>> found = pack(torch.tensor([[False, True, True], [True, False, False]]), multiple=4)
      >>> found.positions, found.kept
      (tensor([[1, 2, 3, 0]]), tensor([[ True,  True,  True, False]]))
    """
    if mask.ndim != 2 or mask.device.type != "cpu":
        raise ValueError(
            f"pack: mask {tuple(mask.shape)} on {mask.device}; [rows, length] on the CPU is "
            "expected, so that no one waits for the device. Call pack in the collate function."
        )
    if parts < 1 or mask.shape[0] % parts or multiple < 1:
        raise ValueError(
            f"pack: parts={parts}, multiple={multiple}, and the mask has {mask.shape[0]} rows; "
            "numbers of at least 1, and rows in parts of equal size, are expected."
        )
    counts = mask.bool().reshape(parts, -1)
    need = int(counts.sum(-1).max())
    capacity = min(_capacity(need, multiple, capacities), counts.shape[1])
    # No place twice, so that the backward of the gathering adds nothing up.
    positions = (~counts).to(torch.uint8).argsort(dim=-1, stable=True)[:, :capacity].contiguous()
    return Packed(positions, counts.gather(-1, positions), mask.bool())


def _capacity(need: int, multiple: int, capacities: Sequence[int] | None) -> int:
    if capacities is None:
        return max(1, -(-need // multiple)) * multiple
    enough = [c for c in capacities if c >= max(need, 1)]
    if not enough:
        raise ValueError(
            f"pack: {need} positions count, and the largest of capacities={list(capacities)} is "
            f"{max(capacities, default=0)}. Add one that is at least {need}, or give `multiple` "
            "instead."
        )
    return min(enough)


@overload
def take(values: Tensor, packed: Packed) -> Tensor: ...


@overload
def take(values: Sparse, packed: Packed) -> Sparse: ...


def take(values: Any, packed: Packed) -> Any:
    """The packed rows of values: hidden states, logits, labels. Differentiable.

    In front of a loss it is `fkd.call(take, student.logits, batch.packed)`, with
    `where=batch.packed.kept` on the term.

    Args:
      values: `[rows, length, *features]`, of the rows and length of the mask that was packed; or
        a teacher that is known on some classes.
      packed: from `pack`.

    Returns:
      `[parts, capacity, *features]`. Padding is an arbitrary other row.

    Example:
      >>> packed = pack(torch.tensor([[False, True, True], [True, False, False]]), multiple=2)
      >>> take(torch.arange(6).reshape(2, 3), packed)
      tensor([[1, 2, 3, 0]])
    """
    if isinstance(values, SparseDistribution):
        return values.map(lambda x: take(x, packed))
    if values.shape[:2] != packed.mask.shape:
        raise ValueError(
            f"take: values {tuple(values.shape)} must begin with the axes of the mask that was "
            f"packed, {tuple(packed.mask.shape)}: a row for every position. For the next token, "
            "shift the labels (next_tokens) and not the values."
        )
    parts = packed.positions.shape[0]
    # One matrix of all positions; part i begins after the positions of the parts before it.
    size = values.shape[0] // parts * values.shape[1]
    begin = torch.arange(parts, device=values.device).unsqueeze(-1) * size
    flat = (packed.positions + begin).flatten()
    return values.flatten(0, 1).index_select(0, flat).unflatten(0, tuple(packed.positions.shape))


def next_tokens(
    labels: Int[Tensor, "rows length"], *, ignore_index: int = -100
) -> Int[Tensor, "rows length"]:
    """The label of each position's next token: position t predicts token t + 1.

    The last position has none. `next_tokens(labels) != ignore_index` are the positions whose
    logits (and hidden states) count, as they are, unshifted.

    Args:
      labels: `[rows, length]`, the tokens themselves, `ignore_index` where they do not count.
      ignore_index: what stands at the last position.

    Example:
      >>> next_tokens(torch.tensor([[-100, 7, 8, 9]]))
      tensor([[   7,    8,    9, -100]])
    """
    tokens: Any = labels
    # Refs have it, too, and no number of axes before a step runs.
    tensor = hasattr(tokens, "__torch_function__")
    if not tensor or (isinstance(tokens, Tensor) and tokens.ndim != 2):
        raise ValueError(
            f"next_tokens: labels is {tokens!r:.60}; a tensor [rows, length] is expected. In "
            "a term: fkd.call(fkd.loops.next_tokens, batch.labels)."
        )
    last = torch.full_like(labels[:, :1], ignore_index)
    return torch.cat([labels[:, 1:], last], dim=1)
