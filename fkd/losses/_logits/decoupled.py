"""Decoupled losses: the labelled class apart from the others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.labels import check_labels, labels_index
from .._shared.masks import keep, soften
from .._shared.softmax import checked, cross, logsumexp, relative_entropy, squared


def dkd(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    labels: Int[Tensor, "*batch"],
    *,
    alpha: float | Tensor = 1.0,
    beta: float | Tensor = 8.0,
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Decoupled knowledge distillation: KL on the label, and KL among the other classes.

        dkd = T^2 * (alpha KL([p_y, 1 - p_y] | [q_y, 1 - q_y]) + beta KL(p' | q'))
        p = softmax(teacher / T), p' = softmax of the classes other than y; q, q' likewise

    With (alpha, beta) = (1, 1 - p_y) it is `kl`. With two classes the second part is 0. All in
    log space: no probability is rounded to 0 before its logarithm.

    Args:
      student_logits: `[*batch, vocab]`. `-inf` means probability 0.
      teacher_logits: `[*batch, vocab]`.
      labels: `[*batch]`, integers from 0 to vocab - 1; anything where `where` is False.
      alpha: weight of the part of the label (TCKD).
      beta: weight of the part of the other classes (NCKD).
      temperature: T > 0, a number or a tensor `[*batch, 1]`, one T a position.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, non-negative, in nats.

    Example:
      >>> dkd(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([1]))
      tensor([0.])

    Reference:
      Zhao et al., Decoupled Knowledge Distillation, arXiv:2203.08679.
    """
    s, t, index = _labelled("dkd", student_logits, teacher_logits, labels, temperature, where)
    target_q, others_q = decouple(soften(s, temperature), index)
    target_p, others_p = decouple(soften(t, temperature), index)
    tckd, nckd = relative_entropy(target_p, target_q), relative_entropy(others_p, others_q)
    return keep(squared(temperature) * (alpha * tckd + beta * nckd), where)


def nkd(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    labels: Int[Tensor, "*batch"],
    *,
    gamma: float | Tensor = 1.5,
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Normalized knowledge distillation: soft label loss, and cross-entropy among the others.

        nkd = -p_y log q_y - gamma T^2 sum_{v != y} p'_v log q'_v
        p, q at temperature 1; p' = softmax of teacher_v / T over v != y, q' likewise

    The hard-label part of the paper, -log q_y, is the task loss: a term of its own.

    Args:
      student_logits: `[*batch, vocab]`. `-inf` means probability 0.
      teacher_logits: `[*batch, vocab]`.
      labels: `[*batch]`, integers from 0 to vocab - 1; anything where `where` is False.
      gamma: weight of the part of the other classes.
      temperature: T > 0, a number or a tensor `[*batch, 1]`, one T a position.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, non-negative, in nats.

    Example:
      >>> nkd(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([1]))
      tensor([0.3466])

    Reference:
      Yang et al., From Knowledge Distillation to Self-Knowledge Distillation: A Unified
      Approach with Normalized Loss and Customized Soft Labels, arXiv:2303.13005.
    """
    s, t, index = _labelled("nkd", student_logits, teacher_logits, labels, temperature, where)
    log_q_y = F.log_softmax(s, -1).gather(-1, index).squeeze(-1)
    p_y = t.softmax(-1).gather(-1, index).squeeze(-1)
    _, others_q = decouple(soften(s, temperature), index)
    _, others_p = decouple(soften(t, temperature), index)
    others = cross(others_p.exp(), others_q)
    return keep(-p_y * log_q_y - gamma * squared(temperature) * others, where)


def _labelled(
    loss: str,
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float | Tensor,
    where: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Both logits, checked and masked, and the labels, to gather with."""
    check_labels(loss, student_logits, labels)
    s, t = checked(
        loss,
        where,
        temperature=temperature,
        student_logits=student_logits,
        teacher_logits=teacher_logits,
    )
    return s, t, labels_index(labels, where)


def decouple(logits: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """log [p_y, 1 - p_y] `[*batch, 2]`, and the log-probabilities among the other classes.

    The label itself has log-probability -inf among the others. A single class has no others:
    their logarithms are all -inf, and their part is 0.
    """
    is_label = torch.arange(logits.shape[-1], device=logits.device) == index
    others = logits.masked_fill(is_label, -torch.inf)
    rest = logsumexp(others)
    target = F.log_softmax(torch.cat([logits.gather(-1, index), rest], -1), -1)
    return target, others - torch.where(rest.isneginf(), 0.0, rest)
