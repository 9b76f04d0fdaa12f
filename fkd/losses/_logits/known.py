"""`kl` and `soft_cross_entropy` of a teacher that is known on some classes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._base.sparse import SampledDistribution, SparseDistribution, TopKDistribution
from .._shared.checks import floating, softenable
from .._shared.grouped import grouped, log_softmax
from .._shared.known import entropy_of, filled, listed_log_p, same_classes, same_temperature
from .._shared.masks import fill, keep, soften
from .._shared.softmax import cross, logsumexp, relative_entropy


def known_kl(
    loss: str,
    student_logits: Tensor,
    teacher: SparseDistribution,
    temperature: float | Tensor,
    where: Tensor | None,
) -> Tensor:
    """`[*batch]`, the divergence of the student from a teacher that is known on some classes."""
    s, teacher, square = _inputs(loss, student_logits, teacher, temperature, where)
    if isinstance(teacher, TopKDistribution):
        log_p, log_q = _listed(s, teacher)
        if teacher.log_rest is None:
            return keep(square * cross(log_p.exp(), log_p - log_q), where)
        return keep(square * relative_entropy(log_p, log_q), where)
    assert isinstance(teacher, SampledDistribution)
    entropy = entropy_of(loss, teacher)
    return keep(square * (_drawn(s, teacher) - entropy.to(s.dtype)), where)


def known_cross_entropy(
    loss: str,
    student_logits: Tensor,
    teacher: SparseDistribution,
    temperature: float | Tensor,
    where: Tensor | None,
) -> Tensor:
    """`[*batch]`, the cross-entropy under a teacher that is known on some classes."""
    s, teacher, square = _inputs(loss, student_logits, teacher, temperature, where)
    if isinstance(teacher, TopKDistribution):
        log_p, log_q = _listed(s, teacher)
        return keep(-square * cross(log_p.exp(), log_q), where)
    return keep(square * _drawn(s, teacher), where)


def _inputs(
    loss: str,
    student_logits: Tensor,
    teacher: SparseDistribution,
    temperature: float | Tensor,
    where: Tensor | None,
) -> tuple[Tensor, SparseDistribution, float]:
    """Softened logits, the distribution with nothing where a position does not count, and T^2."""
    floating(loss, student_logits=student_logits)
    softenable(loss, where, student_logits, temperature)
    same_temperature(loss, teacher, temperature)
    same_classes(loss, teacher, tuple(student_logits.shape))
    (s,) = fill(student_logits, where=where)
    return soften(s, teacher.temperature), filled(teacher, s.dtype, where), teacher.temperature**2


def _listed(s: Tensor, teacher: TopKDistribution) -> tuple[Tensor, Tensor]:
    """log p and log q of the listed classes, and of all others together if they have any."""
    ids, log_p = teacher.index(), listed_log_p(teacher)
    if teacher.log_rest is None:
        return log_p, s.gather(-1, ids) - logsumexp(s)
    return log_p, log_softmax(grouped(s, ids, teacher.log_probs > -torch.inf))


def _drawn(s: Tensor, teacher: SparseDistribution) -> Tensor:
    """`-sum_i w_i log q_i` over the draws."""
    assert isinstance(teacher, SampledDistribution)
    log_q = s.gather(-1, teacher.index()) - logsumexp(s)
    if teacher.weights is None:
        return -log_q.mean(-1)
    return -(teacher.weights * torch.where(teacher.weights != 0, log_q, 0.0)).sum(-1)
