"""The definition: all logits at once, differentiated by autograd."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .._shared.products import shielded
from ._known import known_columns
from ._problem import Head, Problem, Solution
from ._products import rounded
from ._rows import row_values, rows_of


def materialized(problem: Problem) -> Solution:
    """The weighted sum over tokens, from the logits of the whole batch."""
    student = _logits(rounded(problem.student, problem.operand_dtype), problem.dtype)
    values = _columns(problem, student).masked_fill(~problem.keep[:, None], 0.0)
    total = values.new_zeros(())
    for (weight, _), column in zip(problem.divergence.terms, values.unbind(-1), strict=False):
        total = total + weight * problem.summed(column)
    return Solution(total, values.detach())


def _columns(problem: Problem, student: Tensor) -> Tensor:
    """`[tokens, columns]`, the values of every token."""
    if problem.known is not None:
        return known_columns(problem, student)
    teacher = problem.teacher and rounded(problem.teacher, problem.operand_dtype)
    teacher = teacher and _logits(teacher, problem.dtype)
    columns = row_values(problem, rows_of(problem, student, teacher), problem.labels)
    return torch.stack(columns, dim=-1)


def _logits(head: Head, dtype: torch.dtype) -> Tensor:
    bias = None if head.bias is None else head.bias.to(dtype)
    hidden, weight = shielded(head.hidden.to(dtype)), shielded(head.weight.to(dtype))
    return F.linear(hidden, weight, bias if bias is None else shielded(bias)).to(dtype)
