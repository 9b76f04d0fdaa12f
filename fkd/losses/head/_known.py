"""The mathematics of a block of logits against a teacher that is known on some classes.

    CE = -sum_k w_k log q_k - p_r log q_r,   KL = CE - H,   r: all other classes, as one

and by the softened logits

    dCE/ds_v = c q_v - sum_{k: id_k = v} d_k,
    c = sum_k w_k, d = w           where the others do not count
    c = 1 - p_r / q_r, d = p - q p_r / q_r    where they do,

so that beside the logits nothing is as long as the vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..._base.sparse import SampledDistribution, SparseDistribution, TopKDistribution
from .._shared.grouped import grouped, log_softmax
from .._shared.known import filled, listed_log_p
from .._shared.masks import soften
from .._shared.softmax import cross, logsumexp, relative_entropy
from ._problem import Problem
from ._rows import by_raw_logits, entropy, label_slope, student_value, transformed
from ._sizes import block_rows

KINDS = ("kl", "soft_cross_entropy", "cross_entropy", "z_loss")
"""What can be had of such a teacher."""


class Known(NamedTuple):
    """What values and gradient of a block share.

    Attributes:
      cross_entropy: `[rows]`, at the temperature, without its square.
      kl: `[rows]`, likewise; meaningless if no divergence reads it.
      factor: `[rows, 1]`, c of the text of this file.
      change: `[rows, k]`, -d, by the places of the classes.
      normaliser: `[rows, 1]`, of the softened logits.
    """

    cross_entropy: Tensor
    kl: Tensor
    factor: Tensor
    change: Tensor
    normaliser: Tensor


def known_rows(
    problem: Problem,
    student: Tensor,
    teacher: Tensor | SparseDistribution | None,
    labels: Tensor | None,
    keep: Tensor,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """The rows of a chunk, on blocks that stay in a cache; overwrites the logits."""
    assert isinstance(teacher, SparseDistribution)
    size = block_rows(student.shape[0], student.shape[1], student.device)
    parts: list[Tensor] = []
    for start in range(0, student.shape[0], size):
        cut = slice(start, start + size)
        block = filled(teacher[cut], problem.dtype, keep[cut])
        block_labels = None if labels is None else labels[cut]
        z = transformed(student[cut].to(problem.dtype), problem.student)
        known = _known(soften(z, problem.temperature), block)
        excluded = ~keep[cut, None]
        parts.append(_columns(problem, z, block, known, block_labels).masked_fill(excluded, 0.0))
        if with_gradient:
            gradient = _gradient(problem, z, block, known, block_labels)
            student[cut] = gradient.masked_fill_(excluded, 0.0)
    return torch.cat(parts), student


def known_columns(problem: Problem, student: Tensor) -> Tensor:
    """`[tokens, columns]`, the values from the logits of the whole batch, to be differentiated."""
    assert problem.known is not None
    teacher = filled(problem.known, problem.dtype, problem.keep)
    z = transformed(student, problem.student)
    known = _known(soften(z, problem.temperature), teacher)
    return _columns(problem, z, teacher, known, problem.labels)


def _known(s: Tensor, teacher: SparseDistribution) -> Known:
    ids = teacher.index()
    if isinstance(teacher, TopKDistribution) and teacher.log_rest is not None:
        used, log_p = teacher.log_probs > -torch.inf, listed_log_p(teacher)
        logits = grouped(s, ids, used)
        log_q = log_softmax(logits)
        p, listed = log_p.exp(), log_q[..., :-1]
        # Where the student leaves nothing for the others, there is nothing that could change.
        possible = log_q[..., -1:] > -torch.inf
        ratio = torch.where(possible, (log_p[..., -1:] - log_q[..., -1:]).exp(), 0.0)
        change = torch.where(used, listed.exp() * ratio - p[..., :-1], 0.0)
        kl = relative_entropy(log_p, log_q)
        return Known(-cross(p, log_q), kl, 1 - ratio, change, logsumexp(logits))
    normaliser = logsumexp(s)
    log_q = s.gather(-1, ids) - normaliser
    if isinstance(teacher, TopKDistribution):
        log_p = listed_log_p(teacher)
        p = log_p.exp()
        one = torch.ones_like(normaliser)
        return Known(-cross(p, log_q), cross(p, log_p - log_q), one, -p, normaliser)
    assert isinstance(teacher, SampledDistribution)
    weights = teacher.weights
    if weights is None:
        weights = torch.full_like(log_q, 1 / teacher.known)
    values = -(weights * torch.where(weights != 0, log_q, 0.0)).sum(-1)
    kl = values if teacher.entropy is None else values - teacher.entropy
    return Known(values, kl, weights.sum(-1, keepdim=True), -weights, normaliser)


def _columns(
    problem: Problem, z: Tensor, teacher: SparseDistribution, known: Known, labels: Tensor | None
) -> Tensor:
    columns: list[Tensor] = []
    for atom in problem.divergence.atoms:
        if atom.rule is None:
            columns.append(student_value(atom, z, _plain_normaliser(problem, z, known), labels))
        else:
            column = known.kl if atom.kind == "kl" else known.cross_entropy
            columns.append(problem.temperature**2 * column)
    if problem.metrics:
        log_q = soften(z, problem.temperature) - known.normaliser
        columns.append(entropy(log_q.exp(), log_q))
        columns.append((z.argmax(-1) == teacher.first()).to(z.dtype))
    return torch.stack(columns, dim=-1)


def _plain_normaliser(problem: Problem, z: Tensor, known: Known) -> Tensor:
    """At temperature 1."""
    plain = not isinstance(problem.temperature, Tensor) and problem.temperature == 1
    return known.normaliser if plain else z.logsumexp(-1, keepdim=True)


def _gradient(
    problem: Problem, z: Tensor, teacher: SparseDistribution, known: Known, labels: Tensor | None
) -> Tensor:
    """The derivative of the weighted sum by the student's raw logits, `[rows, vocab]`."""
    terms, temperature = problem.divergence.terms, problem.temperature
    gradient: Tensor | None = None
    if problem.divergence.needs_teacher:
        weight = sum(w for w, atom in terms if atom.rule is not None) * temperature
        q = torch.exp(soften(z, temperature) - known.normaliser)
        gradient = q.mul_(weight * known.factor)
        gradient.scatter_add_(-1, teacher.index(), weight * known.change)
    if any(atom.rule is None for _, atom in terms):
        normaliser = _plain_normaliser(problem, z, known)
        others = label_slope(problem, z, normaliser, labels)
        gradient = others if gradient is None else gradient.add_(others)
    assert gradient is not None
    return by_raw_logits(gradient, z, problem.student)
