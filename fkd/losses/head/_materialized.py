"""The definition: all logits at once, differentiated by autograd."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .._shared.products import shielded
from ._problem import Head, Problem, Solution
from ._products import rounded
from ._rows import row_values, rows_of


def materialized(problem: Problem) -> Solution:
    """The weighted sum over tokens, from the logits of the whole batch."""
    dtype, rounding = problem.dtype, problem.operand_dtype
    student = _logits(rounded(problem.student, rounding), dtype)
    teacher = problem.teacher and _logits(rounded(problem.teacher, rounding), dtype)
    columns = row_values(problem, rows_of(problem, student, teacher), problem.labels)
    values = torch.stack([c.masked_fill(~problem.keep, 0.0) for c in columns], dim=-1)
    total = values.new_zeros(())
    for (weight, _), column in zip(problem.divergence.terms, values.unbind(-1), strict=False):
        total = total + weight * column.sum()
    return Solution(total, values.detach())


def _logits(head: Head, dtype: torch.dtype) -> Tensor:
    bias = None if head.bias is None else head.bias.to(dtype)
    hidden, weight = shielded(head.hidden.to(dtype)), shielded(head.weight.to(dtype))
    return F.linear(hidden, weight, bias if bias is None else shielded(bias)).to(dtype)
