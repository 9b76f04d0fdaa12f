"""Which entries of the vocabulary a rank has, and what the ranks tell each other of their sums."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Division(NamedTuple):
    """Which entries of the shared vocabulary this rank has. Plain data, which a graph may hold.

    Attributes:
      group: name of the process group whose ranks have the others.
      size, rank: of the group.
      most: how many entries a rank has at most.
      start, stop: the entries of this rank.
    """

    group: str
    size: int
    rank: int
    most: int
    start: int
    stop: int

    def summed(self, x: Tensor) -> Tensor:
        """The sum over the ranks; no gradient."""
        ops = torch.ops._c10d_functional
        return ops.wait_tensor(ops.all_reduce(x.contiguous(), "sum", self.group))

    def stacked(self, x: Tensor) -> Tensor:
        """`[size, *shape]`, what each rank has; no gradient."""
        ops = torch.ops._c10d_functional
        every = ops.all_gather_into_tensor(x.contiguous()[None], self.size, self.group)
        return ops.wait_tensor(every)
