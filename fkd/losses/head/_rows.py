"""The mathematics of a block of logits: the values of its rows, and d total / d logits.

Every divergence is `sum_v phi(log p_v, log q_v)` with p, q the softmax of logits / T, so that

    d/dz = (u - q sum_v u) / T,    u = d phi / d log q = q g,

and weighted sums add their u (times T^2 where the value has that factor). Cross-entropy and
z-loss read softmax(z) at temperature 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._shared.masks import soften
from ._divergence import Atom
from ._problem import Head, Number, Problem


class Rows(NamedTuple):
    """A block of logits and what its values and its gradient share.

    Attributes:
      student: `[rows, vocab]`, the student's logits.
      log_q: `[rows, vocab]`, of the student.
      q: `[rows, vocab]`.
      log_p: `[rows, vocab]`, of the teacher (of the student if there is no teacher).
      p: `[rows, vocab]`.
      pairs: summand and slope of each divergence, `[rows, vocab]`; None for a loss of the
        student's logits alone.
      normaliser: `[rows, 1]`, at temperature 1; meaningless if no loss reads it.
    """

    student: Tensor
    log_q: Tensor
    q: Tensor
    log_p: Tensor
    p: Tensor
    pairs: list[tuple[Tensor, Tensor] | None]
    normaliser: Tensor


def rows_of(problem: Problem, student: Tensor, teacher: Tensor | None) -> Rows:
    """Raw logits, transformed and softened once for all divergences and metrics."""
    atoms, student = problem.divergence.atoms, transformed(student, problem.student)
    log_q = q = log_p = p = normaliser = student
    if problem.divergence.needs_teacher or problem.metrics:
        log_q = torch.log_softmax(soften(student, problem.temperature), dim=-1)
        q = log_q.exp()
    if teacher is not None and problem.teacher is not None:
        teacher = soften(transformed(teacher, problem.teacher), problem.temperature)
        log_p = torch.log_softmax(teacher, dim=-1)
        p = log_p.exp()
    if any(atom.rule is None for atom in atoms):
        normaliser = torch.logsumexp(student, dim=-1, keepdim=True)
    pairs = [None if atom.rule is None else atom.rule(log_p, log_q, p, q) for atom in atoms]
    return Rows(student, log_q, q, log_p, p, pairs, normaliser)


def row_values(problem: Problem, rows: Rows, labels: Tensor | None) -> list[Tensor]:
    """The values of every divergence and metric, `[rows]` each."""
    columns: list[Tensor] = []
    for atom, pair in zip(problem.divergence.atoms, rows.pairs, strict=True):
        if pair is not None:
            column = pair[0].sum(-1)
            columns.append(problem.temperature**2 * column if atom.square else column)
        else:
            columns.append(student_value(atom, rows.student, rows.normaliser, labels))
    if problem.metrics:
        columns.append(entropy(rows.q, rows.log_q))
        if problem.teacher is not None:
            columns.append(entropy(rows.p, rows.log_p))
            columns.append((rows.log_q.argmax(-1) == rows.log_p.argmax(-1)).to(rows.q.dtype))
    return columns


def student_value(atom: Atom, student: Tensor, normaliser: Tensor, labels: Tensor | None) -> Tensor:
    """`[rows]`, a loss of the student's logits alone, at temperature 1."""
    if atom.kind == "z_loss":
        return normaliser[:, 0] ** 2
    assert labels is not None
    return (normaliser - student.gather(-1, labels[:, None]))[:, 0]


def row_gradient(problem: Problem, rows: Rows, labels: Tensor | None) -> Tensor:
    """The derivative of the weighted sum by the student's raw logits, `[rows, vocab]`."""
    parts: list[Tensor] = []
    if problem.divergence.needs_teacher:
        u = joint_slope(problem, rows.pairs)
        parts.append(torch.addcmul(u, rows.q, u.sum(-1, keepdim=True), value=-1))
    if any(pair is None for pair in rows.pairs):
        parts.append(label_slope(problem, rows.student, rows.normaliser, labels))
    gradient = parts[0] if len(parts) == 1 else parts[0] + parts[1]
    return by_raw_logits(gradient, rows.student, problem.student)


def by_raw_logits(gradient: Tensor, student: Tensor, head: Head) -> Tensor:
    """The derivative by what the product gave, from that by what `transformed` made of it."""
    if head.softcap is not None:
        gradient = gradient * (1 - (student / head.softcap) ** 2)
    return gradient if head.scale is None else gradient * head.scale


def joint_slope(problem: Problem, pairs: Sequence[tuple[Tensor, Tensor] | None]) -> Tensor:
    """`[rows, vocab]`, u / T of the text of this file, of all divergences together."""
    temperature, u = problem.temperature, None
    for (weight, atom), pair in zip(problem.divergence.terms, pairs, strict=True):
        if pair is not None:
            factor = weight * temperature if atom.square else weight / temperature
            slope = _scaled(pair[1], factor)
            u = slope if u is None else u + slope
    assert u is not None
    return u


def label_slope(
    problem: Problem, student: Tensor, normaliser: Tensor, labels: Tensor | None
) -> Tensor:
    """`[rows, vocab]`, the derivative of the losses of the student's logits alone."""
    onto_q, onto_label = label_factors(problem, normaliser)
    gradient = onto_q * torch.exp(student - normaliser)
    if labels is None:
        return gradient
    label = labels[:, None]
    return gradient.scatter(-1, label, gradient.gather(-1, label) - onto_label)


def label_factors(problem: Problem, normaliser: Tensor) -> tuple[Number, Number]:
    """The factors of q, and of 1 at the label, in the derivative of these losses."""
    onto_q, onto_label = 0.0, 0.0
    for weight, atom in problem.divergence.terms:
        if atom.kind == "z_loss":
            onto_q = onto_q + 2 * weight * normaliser
        elif atom.kind == "cross_entropy":
            onto_q, onto_label = onto_q + weight, onto_label + weight
    return onto_q, onto_label


def _scaled(x: Tensor, factor: Number) -> Tensor:
    """`factor x`; a factor of 1.0 costs nothing."""
    return x if not isinstance(factor, Tensor) and factor == 1 else factor * x


def transformed(logits: Tensor, head: Head) -> Tensor:
    """`softcap * tanh(scale * logits / softcap)`, as far as they are given."""
    logits = logits if head.scale is None else logits * head.scale
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def entropy(p: Tensor, log_p: Tensor) -> Tensor:
    return -(p * torch.where(p > 0, log_p, 0.0)).sum(-1)
