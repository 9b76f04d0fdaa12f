"""The mathematics of a block of logits: the values of its rows, and d total / d logits.

Every divergence is `sum_v phi(log p_v, log q_v)` with p, q the softmax of logits / T, so that

    d/dz = (u - q sum_v u) / T,    u = d phi / d log q = q g,

and weighted sums add their u (times T^2 where the value has that factor). Cross-entropy and
z-loss read softmax(z) at temperature 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._divergence import Divergence
from ._problem import Number, Problem


class Rows(NamedTuple):
    """A block of logits and its distributions, `[rows, vocab]` each; `normaliser` `[rows, 1]`."""

    student: Tensor
    teacher: Tensor
    log_q: Tensor
    q: Tensor
    log_p: Tensor
    p: Tensor
    normaliser: Tensor


def rows_of(problem: Problem, student: Tensor, teacher: Tensor | None) -> Rows:
    """Raw logits, transformed and softened once for all divergences and metrics."""
    student = _transform(student, problem.student.scale, problem.student.softcap)
    needed = problem.divergence.needs_teacher or problem.metrics
    log_q = _log_softmax(student, problem.temperature) if needed else student
    q = log_q.exp() if needed else student
    normaliser = student[:, :1]
    if any(atom.phi is None for atom in problem.divergence.atoms):
        normaliser = torch.logsumexp(student, dim=-1, keepdim=True)
    if teacher is None or problem.teacher is None:
        return Rows(student, student, log_q, q, log_q, q, normaliser)
    teacher = _transform(teacher, problem.teacher.scale, problem.teacher.softcap)
    log_p = _log_softmax(teacher, problem.temperature)
    return Rows(student, teacher, log_q, q, log_p, log_p.exp(), normaliser)


def row_values(problem: Problem, rows: Rows, labels: Tensor | None) -> list[Tensor]:
    """The values of every divergence and metric, `[rows]` each."""
    _, _, log_q, q, log_p, p, normaliser = rows
    columns: list[Tensor] = []
    for atom in problem.divergence.atoms:
        if atom.phi is not None:
            column = atom.phi(log_p, log_q, p, q).sum(-1)
            columns.append(problem.temperature**2 * column if atom.square else column)
        elif atom.kind == "z_loss":
            columns.append(normaliser[:, 0] ** 2)
        else:
            assert labels is not None
            columns.append((normaliser - rows.student.gather(-1, labels[:, None]))[:, 0])
    if problem.metrics:
        columns.append(_entropy(q, log_q))
        if problem.teacher is not None:
            columns.append(_entropy(p, log_p))
            columns.append((log_q.argmax(-1) == log_p.argmax(-1)).to(q.dtype))
    return columns


def row_gradient(problem: Problem, rows: Rows, labels: Tensor | None) -> Tensor:
    """The derivative of the weighted sum by the student's raw logits, `[rows, vocab]`."""
    divergence = problem.divergence
    parts: list[Tensor] = []
    if divergence.needs_teacher:
        parts.append(_divergence_slope(problem, rows))
    if any(atom.phi is None for atom in divergence.atoms):
        parts.append(_label_slope(divergence, rows, labels))
    gradient = parts[0] if len(parts) == 1 else parts[0] + parts[1]
    scale, softcap = problem.student.scale, problem.student.softcap
    if softcap is not None:
        gradient = gradient * (1 - (rows.student / softcap) ** 2)
    return gradient if scale is None else gradient * scale


def _divergence_slope(problem: Problem, rows: Rows) -> Tensor:
    _, _, log_q, q, log_p, p, _ = rows
    temperature = problem.temperature
    u: Tensor | None = None
    for weight, atom in problem.divergence.terms:
        if atom.slope is not None:
            factor = weight * temperature if atom.square else weight / temperature
            slope = factor * atom.slope(log_p, log_q, p, q)
            u = slope if u is None else u + slope
    assert u is not None
    return u - q * u.sum(-1, keepdim=True)


def _label_slope(divergence: Divergence, rows: Rows, labels: Tensor | None) -> Tensor:
    q = torch.exp(rows.student - rows.normaliser)
    gradient = torch.zeros_like(q)
    for weight, atom in divergence.terms:
        if atom.kind == "z_loss":
            gradient = gradient + 2 * weight * rows.normaliser * q
        elif atom.kind == "cross_entropy":
            assert labels is not None
            hit = torch.zeros_like(q).scatter(-1, labels[:, None], 1.0)
            gradient = gradient + weight * (q - hit)
    return gradient


def _log_softmax(logits: Tensor, temperature: Number) -> Tensor:
    """Log-probabilities of logits / T; a T of 1.0 costs nothing."""
    plain = not isinstance(temperature, Tensor) and temperature == 1
    return torch.log_softmax(logits if plain else logits / temperature, dim=-1)


def _transform(logits: Tensor, scale: Number | None, softcap: Number | None) -> Tensor:
    """`softcap * tanh(scale * logits / softcap)`, as far as they are given."""
    logits = logits if scale is None else logits * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _entropy(p: Tensor, log_p: Tensor) -> Tensor:
    return -(p * torch.where(p > 0, log_p, 0.0)).sum(-1)
