"""What the strategies are given: flat, checked tensors and the constants of the objective."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..._base.sparse import SparseDistribution
from ._divergence import Divergence
from ._division import Division

Number = float | Tensor
Vocabulary = Tensor | slice

METRICS = ("student_entropy", "teacher_entropy", "agreement")


def tracked(x: Number | None) -> Tensor | None:
    """`x` if a gradient is to be had by it, else None."""
    if not isinstance(x, Tensor) or not torch.is_grad_enabled():
        return None
    # Of a view, since a compiler inside torch.func.grad knows it of nothing else.
    view = x.view_as(x)
    return view if view.requires_grad else None


class Head(NamedTuple):
    """The inputs of one model's head, and what it does to the product.

    Attributes:
      hidden: `[tokens, features]`, 0 where a token does not count.
      weight: `[vocab, features]`.
      bias: `[vocab]`.
      scale: the logits are multiplied by it,
      softcap: then become `softcap * tanh(logits / softcap)`.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    scale: Number | None = None
    softcap: Number | None = None


class Problem(NamedTuple):
    """One call: both heads, the positions that count, and the objective.

    Attributes:
      student: the student's head.
      teacher: the teacher's; None if the divergence reads no teacher.
      labels: `[tokens]`, within the vocabulary; 0 where there is none.
      keep: `[tokens]`, which tokens count.
      divergence: the weighted sum.
      temperature: of both distributions.
      logits_dtype: what the logits are stored in; the rows' arithmetic is in `dtype`.
      operand_dtype: what operands of products are rounded to; None leaves them.
      metrics: whether columns of metrics follow the divergences.
      known: `[tokens]`, in place of the teacher's head one that is known on some classes.
      token_weights: `[tokens]`, how much each counts in the sum; 0 where a token does not count.
      division: which entries of the vocabulary the heads have; None: all.
    """

    student: Head
    teacher: Head | None
    labels: Tensor | None
    keep: Tensor
    divergence: Divergence
    temperature: Number
    logits_dtype: torch.dtype
    operand_dtype: torch.dtype | None
    metrics: bool
    known: SparseDistribution | None = None
    token_weights: Tensor | None = None
    division: Division | None = None

    def over_ranks(self, x: Tensor) -> Tensor:
        """What was summed over the vocabulary, with the entries of the other ranks."""
        return x if self.division is None else self.division.summed(x)

    def summed(self, column: Tensor) -> Tensor:
        """`[]`, the sum over tokens of one of the columns of values, weighted by token."""
        return (column if self.token_weights is None else self.token_weights * column).sum()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of sums and values: float64 if the logits are, float32 otherwise."""
        return torch.promote_types(self.logits_dtype, torch.float32)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the per-token values, in order."""
        names = tuple(atom.name for atom in self.divergence.atoms)
        if not self.metrics:
            return names
        if self.known is not None:
            return names + METRICS[::2]
        return names + (METRICS if self.teacher is not None else METRICS[:1])


class Solution(NamedTuple):
    """What a strategy returns: the weighted sum over tokens and the values it was made of.

    Attributes:
      total: `[]`.
      values: `[tokens, columns]`, without gradient; 0 where a token does not count.
    """

    total: Tensor
    values: Tensor
