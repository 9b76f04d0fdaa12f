"""A few tokens at a time: logits, values and gradients of a chunk, then the next one.

The gradient is computed in the forward pass, while the logits of the chunk are at hand. This
needs the weight of every token in the total: 1, or what the caller says, and 0 where a token
does not count. The division by a count comes later, as a factor of the whole. A token's weight
is a factor of its row of the gradient by the logits, so it is multiplied onto what that row meets
in the products, which is shorter than the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..._base.sparse import SparseDistribution
from ._carry import carry
from ._known import known_rows
from ._problem import Head, Problem, Solution, tracked
from ._products import add_outer, logits, prepared
from ._rows import row_gradient, row_values, rows_of
from ._sizes import block_rows

Teaching = Tensor | SparseDistribution | None
"""The teacher's logits of a chunk, what is known of them, or nothing."""

RowFunction = Callable[[Problem, Tensor, Teaching, Tensor | None, Tensor, bool], "RowResult"]
"""`rows(problem, student_logits, teacher, labels, keep, with_gradient)`; may overwrite."""

RowResult = tuple[Tensor, Tensor]
"""Values `[rows, columns]`, and the gradient by the student's logits (anything if not asked)."""


@dataclass(frozen=True)
class Sums:
    """What is accumulated over chunks; None where nothing asks for it."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    scale: Tensor | None

    @property
    def sums(self) -> tuple[Tensor | None, ...]:
        return self.hidden, self.weight, self.bias, self.scale

    @property
    def wanted(self) -> bool:
        return any(x is not None for x in self.sums)


def chunked(problem: Problem, chunk: int, rows: RowFunction) -> Solution:
    """The weighted sum over tokens, with the gradients of those inputs that require one."""
    inputs = [tracked(x) for x in problem.student[:4]]
    weights = [tracked(w) for w, _ in problem.divergence.terms]
    by_token = tracked(problem.token_weights)
    with torch.no_grad():
        sums = _zeros(problem, [x is not None for x in inputs])
        values = _sweep(problem, chunk, rows, sums)
        of_divergences = values.unbind(-1)[: len(weights)]
        columns = [problem.summed(column) for column in of_divergences]
        total, of_tokens = values.new_zeros(()), None
        for (w, _), column in zip(problem.divergence.terms, columns, strict=True):
            total = total + w * column
        if by_token is not None:
            of_tokens = _weighted_sum(problem, of_divergences)
    gradients = zip([*inputs, *weights, by_token], [*sums.sums, *columns, of_tokens], strict=True)
    pairs = [(x, g.to(x)) for x, g in gradients if x is not None and g is not None]
    return Solution(carry(total, [x for x, _ in pairs], [g for _, g in pairs]), values)


def _weighted_sum(problem: Problem, columns: Sequence[Tensor]) -> Tensor:
    """`[tokens]`, what the divergences of each token add up to."""
    parts = [w * x for (w, _), x in zip(problem.divergence.terms, columns, strict=True)]
    return torch.stack(parts).sum(0)


def torch_rows(
    problem: Problem,
    student: Tensor,
    teacher: Teaching,
    labels: Tensor | None,
    keep: Tensor,
    with_gradient: bool,
) -> RowResult:
    """The rows of a chunk by PyTorch operations, on blocks that stay in a cache."""
    if isinstance(teacher, SparseDistribution):
        return known_rows(problem, student, teacher, labels, keep, with_gradient)
    size = block_rows(student.shape[0], student.shape[1], student.device)
    parts: list[Tensor] = []
    for start in range(0, student.shape[0], size):
        cut = slice(start, start + size)
        block = None if teacher is None else teacher[cut].to(problem.dtype)
        block_labels = None if labels is None else labels[cut]
        shared = rows_of(problem, student[cut].to(problem.dtype), block)
        excluded = ~keep[cut, None]
        columns = torch.stack(row_values(problem, shared, block_labels), dim=-1)
        parts.append(columns.masked_fill(excluded, 0.0))
        if with_gradient:
            gradient = row_gradient(problem, shared, block_labels).masked_fill_(excluded, 0.0)
            if size >= student.shape[0]:
                return parts[0], gradient.to(student.dtype)
            student[cut] = gradient
    return torch.cat(parts), student


def _zeros(problem: Problem, wanted: list[bool]) -> Sums:
    """Sums to accumulate in: float32 or wider, except the hidden states', written once."""
    student = problem.student
    hidden = torch.empty_like(student.hidden) if wanted[0] else None
    weight = torch.zeros_like(student.weight, dtype=problem.dtype) if wanted[1] else None
    bias = student.weight.new_zeros(student.weight.shape[0], dtype=problem.dtype)
    scale = student.weight.new_zeros((), dtype=problem.dtype)
    return Sums(hidden, weight, bias if wanted[2] else None, scale if wanted[3] else None)


def _sweep(problem: Problem, chunk: int, rows: RowFunction, sums: Sums) -> Tensor:
    """The values of all tokens, `[tokens, columns]`; adds to the sums on the way."""
    dtype = problem.logits_dtype
    rounding = problem.operand_dtype
    student = prepared(problem.student, dtype, rounding)
    teacher = None if problem.teacher is None else prepared(problem.teacher, dtype, rounding)
    buffers = _buffers(problem, min(chunk, student.hidden.shape[0]))
    parts: list[Tensor] = []
    for start in range(0, student.hidden.shape[0], chunk):
        cut = slice(start, start + chunk)
        hidden = student.hidden[cut]
        z = logits(student, hidden, dtype, buffers[0])
        z_t: Teaching = None if problem.known is None else problem.known[cut]
        if teacher is not None:
            z_t = logits(teacher, teacher.hidden[cut], dtype, buffers[1])
        labels = None if problem.labels is None else problem.labels[cut]
        values, gradient = rows(problem, z, z_t, labels, problem.keep[cut], sums.wanted)
        parts.append(values)
        if sums.wanted:
            gradient = gradient.to(hidden.dtype)
        by_token = None if problem.token_weights is None else problem.token_weights[cut, None]
        if sums.hidden is not None or sums.scale is not None:
            back = problem.over_ranks(gradient @ student.weight)
            back = back if by_token is None else (back * by_token).to(back.dtype)
            if sums.hidden is not None:
                sums.hidden[cut] = back
            if sums.scale is not None:
                by_bias = _bias_sum(gradient, by_token)
                sums.scale.add_(_by_scale(problem, student, hidden, back, by_bias))
        if sums.weight is not None:
            met = hidden if by_token is None else (hidden * by_token).to(hidden.dtype)
            add_outer(sums.weight, gradient, met)
        if sums.bias is not None:
            sums.bias.add_(_bias_sum(gradient, by_token))
    columns = len(problem.columns)
    return torch.cat(parts) if parts else problem.keep.new_zeros((0, columns), dtype=problem.dtype)


def _bias_sum(gradient: Tensor, by_token: Tensor | None) -> Tensor:
    """`[vocab]`, the gradient by the logits summed over tokens, in float32 or wider."""
    dtype = torch.promote_types(gradient.dtype, torch.float32)
    if by_token is None:
        return gradient.sum(0, dtype=dtype)
    return (by_token.to(dtype).t() @ gradient.to(dtype))[0]


def _by_scale(
    problem: Problem, student: Head, hidden: Tensor, back: Tensor, by_bias: Tensor
) -> Tensor:
    """The derivative by the scale, `sum_v g_v z_v / scale` with z = hidden weight^T + bias.

    The sum over the vocabulary is that of the gradient by the hidden states times these.
    """
    total = (back.to(by_bias.dtype) * hidden).sum()
    if student.bias is not None:
        total = total + problem.over_ranks((by_bias * student.bias).sum())
    assert student.scale is not None
    return total / student.scale


def _buffers(problem: Problem, rows: int) -> tuple[Tensor | None, Tensor | None]:
    """Memory for the logits of a chunk, used again by the next one; compilers plan their own."""
    if torch.compiler.is_compiling() or problem.student.hidden.is_cuda:
        return None, None
    shape, dtype = (rows, problem.student.weight.shape[0]), problem.logits_dtype
    student = problem.student.hidden.new_empty(shape, dtype=dtype)
    return student, None if problem.teacher is None else torch.empty_like(student)
