"""The ranks that share the examples of a batch, and what they tell each other inside a graph.

Functional collectives: they are part of the graph of a step, in forward and backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BUCKET = 32 << 20
"""Bytes in one all-reduce of gradients."""

Rows = tuple[int, ...]
"""How many examples of a batch each rank has, in the order of the ranks."""


@dataclass(frozen=True)
class Ranks:
    """Ranks that share the examples of each batch. Plain data, which a graph may hold.

    Attributes:
      group: name of their process group.
      size: how many they are.
      rank: which of them this process is, from 0.
    """

    group: str
    size: int
    rank: int

    def summed(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Each tensor summed over the ranks: the same bits on all of them. No gradient.

        Tensors of one dtype travel together, at most `BUCKET` bytes at once.
        """
        sums: dict[int, Tensor] = {}
        for places in _buckets(tensors):
            joined = torch.cat([tensors[i].reshape(-1) for i in places])
            joined = all_reduced(joined, self.group)
            parts = joined.split([tensors[i].numel() for i in places])
            for i, part in zip(places, parts, strict=True):
                sums[i] = part.reshape(tensors[i].shape)
        return [sums[i] for i in range(len(tensors))]

    def merged(self, counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The counts of all ranks together, in one collective."""
        if not counts:
            return {}
        with torch.no_grad():
            total = all_reduced(torch.stack(list(counts.values())), self.group)
        return dict(zip(counts, total.unbind(), strict=True))

    def stacked(self, x: Tensor) -> Tensor:
        """`[ranks, *shape]`, the tensor of each rank. Differentiable: the gradient of a rank's
        part is summed over all ranks."""
        return gathered(x.unsqueeze(0), self.size, self.group)

    def whole(self, x: Tensor, rows: Rows) -> Tensor:
        """The rows of all ranks in their order. Differentiable as `stacked`.

        Args:
          x: the own rows; one arbitrary row where this rank has none.
          rows: how many each rank has.
        """
        most = max(rows)
        local = x[: rows[self.rank]]
        if local.shape[0] < most:
            local = torch.cat([local, local.new_zeros(most - local.shape[0], *local.shape[1:])])
        together = gathered(local, self.size, self.group)
        if min(rows) == most:
            return together
        parts = together.split(most)
        return torch.cat([part[:count] for part, count in zip(parts, rows, strict=True)])


def all_reduced(x: Tensor, group: str) -> Tensor:
    """The sum over the ranks of a group; no gradient."""
    ops = torch.ops._c10d_functional
    return ops.wait_tensor(ops.all_reduce(x.contiguous(), "sum", group))


def gathered(x: Tensor, size: int, group: str) -> Tensor:
    """The tensors of all ranks, which have one shape, joined along the first axis."""
    if x.dtype is torch.bool:
        return gathered(x.to(torch.uint8), size, group).bool()
    if x.is_floating_point():
        return _Gather.apply(x, size, group)  # pyright: ignore[reportReturnType]
    return gathered_plainly(x, size, group)


def gathered_plainly(x: Tensor, size: int, group: str) -> Tensor:
    """As `gathered`, without a gradient."""
    ops = torch.ops._c10d_functional
    return ops.wait_tensor(ops.all_gather_into_tensor(x.contiguous(), size, group))


def scattered(x: Tensor, size: int, group: str) -> Tensor:
    """The sum over the ranks, of which each has its part of the first axis; no gradient."""
    ops = torch.ops._c10d_functional
    return ops.wait_tensor(ops.reduce_scatter_tensor(x.contiguous(), "sum", size, group))


class _Gather(torch.autograd.Function):
    """All-gather, whose backward pass is a reduce-scatter."""

    @staticmethod
    def forward(x: Tensor, size: int, group: str) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gathered_plainly(x, size, group)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.size, ctx.group = inputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return scattered(grads[0], ctx.size, ctx.group), None, None


def _buckets(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Places of tensors of one dtype, the last ones first: the order in which a backward pass
    gives gradients."""
    full: list[list[int]] = []
    filling: dict[torch.dtype, tuple[int, list[int]]] = {}
    for i in reversed(range(len(tensors))):
        x = tensors[i]
        size = x.numel() * x.element_size()
        before, places = filling.get(x.dtype, (0, []))
        if places and before + size > BUCKET:
            full.append(places)
            before, places = 0, []
        filling[x.dtype] = before + size, [*places, i]
    return full + [places for _, places in filling.values()]
