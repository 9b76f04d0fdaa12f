"""Divergences to a mixture of the two distributions: finite whatever either model excludes."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.checks import between
from .._shared.masks import keep
from .._shared.softmax import cross, log_probabilities, relative_entropy, squared


def jsd(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    *,
    beta: float | Tensor = 0.5,
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Generalised Jensen-Shannon divergence; beta is the weight of the teacher.

        jsd = T^2 * (beta KL(p | m) + (1 - beta) KL(q | m)),   m = beta p + (1 - beta) q
        p = softmax(teacher / T),  q = softmax(student / T)

    The mixture is arithmetic. With beta = 1/2 it is symmetric and at most T^2 log 2. The value
    is 0 at beta = 0 and beta = 1; jsd / beta -> kl as beta -> 0, and jsd / (1 - beta) ->
    reverse_kl as beta -> 1. (TRL's GKD returns these limits, undivided, at its ends.)

    Args:
      student_logits: `[*batch, vocab]`. `-inf` means probability 0.
      teacher_logits: `[*batch, vocab]`.
      beta: 0 <= beta <= 1, the weight of the teacher in the mixture.
      temperature: T > 0, a number or a tensor `[*batch, 1]`, one T a position.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, from 0 to T^2 times the entropy of (beta, 1 - beta), in nats; always finite.

    Example:
      >>> jsd(torch.tensor([[0.0, -torch.inf]]), torch.tensor([[-torch.inf, 0.0]]))
      tensor([0.6931])

    Reference:
      Agarwal et al., On-Policy Distillation of Language Models, arXiv:2306.13649.
    """
    between("jsd", 0, 1, beta=beta)
    log_q, log_p = log_probabilities("jsd", student_logits, teacher_logits, temperature, where)
    p, q = beta * log_p.exp(), (1 - beta) * log_q.exp()
    log_m = _log(p + q)
    values = cross(p, log_p - log_m) + cross(q, log_q - log_m)
    return keep(squared(temperature) * values, where)


def skew_kl(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    *,
    skew: float | Tensor = 0.1,
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """KL divergence from the teacher to a mixture that holds a little of the teacher.

        skew_kl = T^2 * KL(p | m),   m = skew p + (1 - skew) q
        p = softmax(teacher / T),  q = softmax(student / T)

    Finite where the student has no probability, and with a bounded gradient. Equals `kl` at
    skew = 0 (use `kl` there: this one forms m, not log m) and 0 at skew = 1. DistiLLM's code has
    -sum_v p_v log m_v, without the teacher's entropy: the same gradient for the student.

    Args:
      student_logits: `[*batch, vocab]`. `-inf` means probability 0.
      teacher_logits: `[*batch, vocab]`.
      skew: 0 <= skew <= 1, the weight of the teacher in the mixture.
      temperature: T > 0, a number or a tensor `[*batch, 1]`, one T a position.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, from 0 to -T^2 log(skew), in nats.

    Example:
      >>> skew_kl(torch.tensor([[0.0, -torch.inf]]), torch.tensor([[-torch.inf, 0.0]]))
      tensor([2.3026])

    Reference:
      Ko et al., DistiLLM: Towards Streamlined Distillation for Large Language Models,
      arXiv:2402.03898.
    """
    between("skew_kl", 0, 1, skew=skew)
    log_q, log_p = log_probabilities("skew_kl", student_logits, teacher_logits, temperature, where)
    m = _log(skew * log_p.exp() + (1 - skew) * log_q.exp())
    return keep(squared(temperature) * relative_entropy(log_p, m), where)


def skew_reverse_kl(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    *,
    skew: float | Tensor = 0.1,
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """KL divergence from the student to a mixture that holds a little of the student.

        skew_reverse_kl = T^2 * KL(q | m),   m = (1 - skew) p + skew q
        p = softmax(teacher / T),  q = softmax(student / T)

    Equals `skew_kl` with the two models exchanged, and `reverse_kl` at skew = 0.

    Args:
      student_logits: `[*batch, vocab]`. `-inf` means probability 0.
      teacher_logits: `[*batch, vocab]`.
      skew: 0 <= skew <= 1, the weight of the student in the mixture.
      temperature: T > 0, a number or a tensor `[*batch, 1]`, one T a position.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, from 0 to -T^2 log(skew), in nats.

    Example:
      >>> skew_reverse_kl(torch.tensor([[0.0, -torch.inf]]), torch.tensor([[-torch.inf, 0.0]]))
      tensor([2.3026])

    Reference:
      Ko et al., DistiLLM: Towards Streamlined Distillation for Large Language Models,
      arXiv:2402.03898.
    """
    between("skew_reverse_kl", 0, 1, skew=skew)
    log_q, log_p = log_probabilities(
        "skew_reverse_kl", student_logits, teacher_logits, temperature, where
    )
    m = _log((1 - skew) * log_p.exp() + skew * log_q.exp())
    return keep(squared(temperature) * relative_entropy(log_q, m), where)


def _log(m: Tensor) -> Tensor:
    """Log of a mixture; -inf at 0, with a gradient of 0 there instead of nan."""
    return torch.where(m > 0, torch.where(m > 0, m, 1.0).log(), -torch.inf)
