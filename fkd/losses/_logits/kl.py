"""Losses between the logits of two models. The last axis is the vocabulary (the classes)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..._base.sparse import SparseDistribution
from .._shared.masks import keep
from .._shared.softmax import (
    compared,
    cross,
    log_probabilities,
    relative_entropy,
    softened,
    squared,
)
from .known import known_cross_entropy, known_kl


def kl(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"] | SparseDistribution,
    *,
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """KL divergence of the student from the teacher, softened by a temperature.

        kl = T^2 * sum_v p_v (log p_v - log q_v)
        p = softmax(teacher / T),  q = softmax(student / T)

    The factor T^2 keeps gradients comparable across temperatures. Zero iff the two
    distributions agree; a class with `teacher_logits = -inf` contributes 0. DeiT's soft
    distillation takes the mean over the classes as well: this over their number.

    Args:
      student_logits: `[*batch, vocab]`. `-inf` means probability 0.
      teacher_logits: `[*batch, vocab]`; or a teacher that is known on some classes, at T
        (`fkd.sources.top_k`, `fkd.sources.sampled`). Of the k most probable ones, all others are
        one class of both models, which makes the value a lower bound; over draws, value and
        gradient are right on average.
      temperature: T > 0, a number or a tensor `[*batch, 1]`, one T a position; with a teacher that
        is known on some classes the number at which it is known.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, non-negative, in nats; inf where the teacher has probability on a class
      that the student excludes.

    Example:
      >>> kl(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0]]))
      tensor([0.])

    Reference:
      Hinton et al., Distilling the Knowledge in a Neural Network, arXiv:1503.02531.
    """
    if isinstance(teacher_logits, SparseDistribution):
        return known_kl("kl", student_logits, teacher_logits, temperature, where)
    log_q, log_p, ratio = compared("kl", student_logits, teacher_logits, temperature, where)
    return keep(squared(temperature) * relative_entropy(log_p, log_q, ratio), where)


def reverse_kl(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    *,
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """KL divergence of the teacher from the student: the mode-seeking direction.

        reverse_kl = T^2 * sum_v q_v (log q_v - log p_v)
        p = softmax(teacher / T),  q = softmax(student / T)

    Equals `kl` with the two models exchanged. Where the teacher excludes a class
    (`teacher_logits = -inf`) that the student does not, the value is +inf, as the formula says,
    and the gradient is not finite: exclude the class in both models.

    Args:
      student_logits: `[*batch, vocab]`. `-inf` means probability 0.
      teacher_logits: `[*batch, vocab]`.
      temperature: T > 0, a number or a tensor `[*batch, 1]`, one T a position.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, non-negative, in nats.

    Example:
      >>> reverse_kl(torch.tensor([[0.0, -torch.inf]]), torch.tensor([[0.0, 0.0]]))
      tensor([0.6931])

    Reference:
      Gu et al., MiniLLM: Knowledge Distillation of Large Language Models, arXiv:2306.08543.
    """
    log_q, log_p, ratio = compared("reverse_kl", student_logits, teacher_logits, temperature, where)
    return keep(squared(temperature) * relative_entropy(log_q, log_p, _negative(ratio)), where)


def jeffreys(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    *,
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Jeffreys divergence, the sum of both directions of KL (not their half).

        jeffreys = T^2 * sum_v (p_v - q_v) (log p_v - log q_v)
        p = softmax(teacher / T),  q = softmax(student / T)

    Symmetric. A class that both models exclude contributes 0; a class that one of them
    excludes makes the value +inf.

    Args:
      student_logits: `[*batch, vocab]`. `-inf` means probability 0.
      teacher_logits: `[*batch, vocab]`.
      temperature: T > 0, a number or a tensor `[*batch, 1]`, one T a position.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, non-negative, in nats.

    Example:
      >>> jeffreys(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]]))
      tensor([0.9242])

    Reference:
      Jeffreys, An invariant form for the prior probability in estimation problems, 1946.
    """
    log_q, log_p, ratio = compared("jeffreys", student_logits, teacher_logits, temperature, where)
    both = relative_entropy(log_p, log_q, ratio), relative_entropy(log_q, log_p, _negative(ratio))
    values = both[0] + both[1]
    return keep(squared(temperature) * values, where)


def soft_cross_entropy(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"] | SparseDistribution,
    *,
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Cross-entropy of the student under the teacher's softened distribution.

        soft_cross_entropy = -T^2 * sum_v p_v log q_v
        p = softmax(teacher / T),  q = softmax(student / T)

    Scaled by T^2 like `kl`, so kl = soft_cross_entropy - T^2 H(p): the same gradient for the
    student. Implementations that leave T^2 out (TextBrewer) are this over T^2; TinyBERT's also
    takes the mean over the classes: this over T^2 and the size of the vocabulary.

    Args:
      student_logits: `[*batch, vocab]`. `-inf` means probability 0.
      teacher_logits: `[*batch, vocab]`; or a teacher that is known on some classes, at T
        (`fkd.sources.top_k`, `fkd.sources.sampled`), as in `kl`.
      temperature: T > 0, a number or a tensor `[*batch, 1]`, one T a position; with a teacher that
        is known on some classes the number at which it is known.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, at least T^2 H(p) >= 0, in nats.

    Example:
      >>> soft_cross_entropy(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, -1.0]]))
      tensor([0.6931])

    Reference:
      Hinton et al., Distilling the Knowledge in a Neural Network, arXiv:1503.02531.
    """
    if isinstance(teacher_logits, SparseDistribution):
        return known_cross_entropy(
            "soft_cross_entropy", student_logits, teacher_logits, temperature, where
        )
    log_q, log_p = log_probabilities(
        "soft_cross_entropy", student_logits, teacher_logits, temperature, where
    )
    p = log_p.exp()
    gap = (log_q.exp() - p).sum(-1)  # 0, as in relative_entropy
    return keep(squared(temperature) * (gap - cross(p, log_q)), where)


def logit_mse(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    *,
    center: bool = False,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Mean squared difference of logits.

        logit_mse = mean_v (student_v - teacher_v - c)^2
        c = 0, or with center=True the mean of student - teacher over the classes

    The paper halves the sum over classes; the mean is what implementations use. Centred, it
    ignores a constant added to all logits, as a softmax does, and kl -> logit_mse / 2 as T
    grows. A class that both models exclude (`-inf` in both) counts as a difference of 0.

    Args:
      student_logits: `[*batch, vocab]`.
      teacher_logits: `[*batch, vocab]`.
      center: subtract the mean difference.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, non-negative, in squared logits.

    Example:
      >>> logit_mse(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]]))
      tensor([2.5000])

    Reference:
      Ba and Caruana, Do Deep Nets Really Need to be Deep?, arXiv:1312.6184.
    """
    student_logits, teacher_logits = softened(
        "logit_mse", where, student_logits=student_logits, teacher_logits=teacher_logits
    )
    excluded = student_logits.isneginf() & teacher_logits.isneginf()
    difference = torch.where(excluded, 0.0, student_logits - teacher_logits)
    if center:
        count = (~excluded).sum(-1, keepdim=True).clamp(min=1)
        centred = difference - difference.sum(-1, keepdim=True) / count
        difference = torch.where(excluded, 0.0, centred)
    return keep(difference.square().mean(-1), where)


def _negative(ratio: Tensor | None) -> Tensor | None:
    return None if ratio is None else -ratio
