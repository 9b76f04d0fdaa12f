"""The mathematics of a block of logits of which each of several ranks has some entries.

Of each row and model a rank tells its largest logit and its sum of exponentials, two numbers:

    m = max_r m_r,   log Z = m + log sum_r Z_r exp(m_r - m),

and then its part of what is summed over the vocabulary: of each divergence, and of the slope that
the softmax takes out of the gradient,

    d/dz = (u - q sum_r sum_v u) / T.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..._base.sparse import SparseDistribution
from .._shared.masks import soften
from ._division import Division
from ._problem import Problem
from ._rows import Rows, by_raw_logits, entropy, joint_slope, label_factors, transformed


class _Normaliser(NamedTuple):
    """The logarithm of the sum of exponentials over all entries is `top + log`, `[rows, 1]`."""

    top: Tensor
    log: Tensor

    def log_softmax(self, x: Tensor) -> Tensor:
        return (x - self.top) - self.log


def divided_rows(
    problem: Problem,
    student: Tensor,
    teacher: Tensor | SparseDistribution | None,
    labels: Tensor | None,
    keep: Tensor,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """The rows of a chunk: values over all entries, and the gradient by the logits of this rank."""
    assert problem.division is not None and not isinstance(teacher, SparseDistribution)
    part, excluded = problem.division, ~keep[:, None]
    rows = _rows(problem, part, student, teacher)
    slope = None
    if with_gradient and problem.divergence.needs_teacher:
        slope = joint_slope(problem, rows.pairs)
    label = None if labels is None else _label(part, labels)
    sums = _sums(problem, part, rows, label, slope)
    columns = torch.stack(_columns(problem, part, rows, sums), dim=-1).masked_fill(excluded, 0.0)
    if not with_gradient:
        return columns, student
    gradient = _gradient(problem, rows, label, slope, sums)
    return columns, gradient.masked_fill(excluded, 0.0).to(student.dtype)


def _rows(problem: Problem, part: Division, student: Tensor, teacher: Tensor | None) -> Rows:
    """Logits, log-probabilities over the whole vocabulary, and summands, of this rank's entries."""
    atoms = problem.divergence.atoms
    z = transformed(student.to(problem.dtype), problem.student)
    softened = [soften(z, problem.temperature)]
    if teacher is not None and problem.teacher is not None:
        other = transformed(teacher.to(problem.dtype), problem.teacher)
        softened.append(soften(other, problem.temperature))
    plain = any(atom.rule is None for atom in atoms)
    normalisers = _normalisers(part, [*softened, z] if plain else softened)
    logs = [n.log_softmax(x) for x, n in zip(softened, normalisers, strict=False)]
    log_q, log_p = logs[0], logs[-1]
    q, p = log_q.exp(), log_p.exp()
    pairs = [None if atom.rule is None else atom.rule(log_p, log_q, p, q) for atom in atoms]
    top, log = normalisers[-1]  # at temperature 1, if any loss reads it
    return Rows(z, log_q, q, log_p, p, pairs, top + log)


def _normalisers(part: Division, every: Sequence[Tensor]) -> list[_Normaliser]:
    """Of several blocks of logits, in one collective."""
    tops = [_largest(x) for x in every]
    bases = [torch.where(torch.isinf(top), 0.0, top) for top in tops]  # a rank without a class
    sums = [(x - base[:, None]).exp().sum(-1) for x, base in zip(every, bases, strict=True)]
    told = part.stacked(torch.stack([*bases, *sums])).chunk(2, dim=1)
    top = torch.where(told[1] > 0, told[0], -torch.inf).amax(0)
    base = torch.where(torch.isinf(top), 0.0, top)
    log = (told[1] * (told[0] - base).exp()).sum(0).log()
    return [_Normaliser(t[:, None], n[:, None]) for t, n in zip(base, log, strict=True)]


def _largest(x: Tensor) -> Tensor:
    """`[rows]`; -inf where a rank has no entries."""
    return x.amax(-1) if x.shape[-1] else x.new_full(x.shape[:1], -torch.inf)


class _Label(NamedTuple):
    """`[rows, 1]`: the place of a label among the entries of this rank, and whether it is there."""

    place: Tensor
    here: Tensor


def _label(part: Division, labels: Tensor) -> _Label:
    place = (labels - part.start)[:, None]
    here = (place >= 0) & (place < part.stop - part.start)
    return _Label(torch.where(here, place, 0), here)


def _sums(
    problem: Problem, part: Division, rows: Rows, label: _Label | None, slope: Tensor | None
) -> dict[str, Tensor]:
    """`[rows]` each, the sums over the whole vocabulary, in one collective: of each divergence by
    its place in the sum, and of what else there is by its name."""
    sums = {str(i): pair[0].sum(-1) for i, pair in enumerate(rows.pairs) if pair is not None}
    if label is not None:
        sums["label"] = _chosen(rows.student, label)
    if slope is not None:
        sums["slope"] = slope.sum(-1)
    if problem.metrics:
        sums["student"] = entropy(rows.q, rows.log_q)
        sums["teacher"] = entropy(rows.p, rows.log_p)
    if not sums:
        return {}
    return dict(zip(sums, part.summed(torch.stack([*sums.values()])).unbind(), strict=True))


def _chosen(z: Tensor, label: _Label) -> Tensor:
    """`[rows]`, the logit of the label; 0 on the other ranks."""
    if not z.shape[-1]:
        return z.sum(-1)
    return torch.where(label.here, z.gather(-1, label.place), 0.0)[:, 0]


def _columns(
    problem: Problem, part: Division, rows: Rows, sums: Mapping[str, Tensor]
) -> list[Tensor]:
    columns: list[Tensor] = []
    for i, atom in enumerate(problem.divergence.atoms):
        if atom.rule is not None:
            column = sums[str(i)]
            columns.append(problem.temperature**2 * column if atom.square else column)
        elif atom.kind == "z_loss":
            columns.append(rows.normaliser[:, 0] ** 2)
        else:
            columns.append(rows.normaliser[:, 0] - sums["label"])
    if problem.metrics:
        columns.append(sums["student"])
        if problem.teacher is not None:
            first = [_first(part, x) for x in (rows.log_q, rows.log_p)]
            columns += [sums["teacher"], (first[0] == first[1]).to(rows.q.dtype)]
    return columns


def _first(part: Division, x: Tensor) -> Tensor:
    """`[rows]`, the entry of the largest value; of several the first."""
    if x.shape[-1]:
        value, place = x.max(-1)
    else:
        value, place = _largest(x), torch.zeros(x.shape[:1], dtype=torch.long, device=x.device)
    values, places = part.stacked(torch.stack([value.double(), place + part.start])).unbind(1)
    return places.gather(0, values.argmax(0)[None])[0]


def _gradient(
    problem: Problem,
    rows: Rows,
    label: _Label | None,
    slope: Tensor | None,
    sums: Mapping[str, Tensor],
) -> Tensor:
    """The derivative of the weighted sum by the raw logits of this rank."""
    parts: list[Tensor] = []
    if slope is not None:
        parts.append(torch.addcmul(slope, rows.q, sums["slope"][:, None], value=-1))
    if any(pair is None for pair in rows.pairs):
        onto_q, onto_label = label_factors(problem, rows.normaliser)
        gradient = onto_q * torch.exp(rows.student - rows.normaliser)
        if label is not None and gradient.shape[-1]:
            less = torch.where(label.here, onto_label, 0.0).to(gradient.dtype)
            gradient = gradient.scatter_add(-1, label.place, -less)
        parts.append(gradient)
    gradient = parts[0] if len(parts) == 1 else parts[0] + parts[1]
    return by_raw_logits(gradient, rows.student, problem.student)
