"""Divergences that set mistakes above and below the teacher's probability against each other."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.masks import keep, upcast
from .._shared.softmax import log_probabilities, squared


def ab_divergence(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    *,
    alpha: float | Tensor = 0.2,
    beta: float | Tensor = 0.7,
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Alpha-beta divergence: how much large errors count, and how much sure ones (ABKD).

        T^2 / (a b) sum_v (a/(a + b) p_v^(a + b) + b/(a + b) q_v^(a + b) - p_v^a q_v^b)
        p = softmax(teacher / T),  q = softmax(student / T),  a = alpha,  b = beta

    and its limits where a, b or a + b is 0, exactly. A larger alpha looks more at classes where
    the two are far apart, a larger beta at classes of which the student is sure. Equals `kl` at
    (1, 0), `reverse_kl` at (0, 1), `alpha_divergence` where a + b = 1, and half of the squared
    difference of the probabilities at (1, 1).

    Args:
      student_logits: `[*batch, vocab]`. `-inf` means probability 0.
      teacher_logits: `[*batch, vocab]`.
      alpha: any real number.
      beta: any real number. With alpha or beta at 0 or below, or with a negative sum, classes
        that one model excludes may give inf.
      temperature: T > 0, a number or a tensor `[*batch, 1]`, one T a position.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, non-negative.

    Example:
      >>> ab_divergence(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]]), alpha=1.0, beta=1.0)
      tensor([0.2136])

    Reference:
      Wang et al., ABKD: Pursuing a Proper Allocation of the Probability Mass in Knowledge
      Distillation via alpha-beta-Divergence, arXiv:2505.04560; Cichocki et al., Generalized
      Alpha-Beta Divergences, Entropy 2011.
    """
    log_q, log_p = log_probabilities(
        "ab_divergence", student_logits, teacher_logits, temperature, where
    )
    a, b = (torch.as_tensor(x, dtype=log_q.dtype, device=log_q.device) for x in (alpha, beta))
    # The divergence of q from p with b and a is the same. So the larger of two probabilities
    # stands in front, and the exponential of their ratio does not overflow.
    above = log_p >= log_q
    larger = torch.where(above, log_p, log_q)
    ratio = torch.where(above, log_q - log_p, log_p - log_q)
    both_excluded = larger.isneginf()
    ratio = torch.where(both_excluded, 0.0, ratio)
    first, second = torch.where(above, a, b), torch.where(above, b, a)
    bent = (_bent(ratio, a + b) - _bent(ratio, second)) / torch.where(first == 0, 1.0, first)
    values = torch.where(first == 0, _slope(torch.where(first == 0, ratio, 0.0), second), bent)
    values = torch.exp((a + b) * torch.where(both_excluded, 0.0, larger)) * values
    values = torch.where(both_excluded, 0.0, values).sum(-1)
    return keep(squared(temperature) * values, where)


def todi(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    *,
    forward_weight: Float[Tensor, "*batch vocab"] | None = None,
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Forward KL for the classes that the student underrates, reverse KL for the others (ToDi).

        todi = T^2 sum_v (w_v p_v log(p_v / q_v) + (1 - w_v) q_v log(q_v / p_v))
        w_v = sigmoid(log p_v - log q_v) = p_v / (p_v + q_v), a constant of the derivative

    Its value is that of `jeffreys`, sum_v (p_v - q_v) log(p_v / q_v); its gradient is another,
    since w is held.

    Args:
      student_logits: `[*batch, vocab]`. `-inf` means probability 0.
      teacher_logits: `[*batch, vocab]`.
      forward_weight: `[*batch, vocab]`, w; None: as above, held constant, as published.
      temperature: T > 0, a number or a tensor `[*batch, 1]`, one T a position. The paper has no
        T^2: its weight is T^2 times larger.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, non-negative, in nats.

    Example:
      >>> todi(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]]))
      tensor([0.9242])

    Reference:
      Jung et al., ToDi: Token-wise Distillation via Fine-Grained Divergence Control,
      arXiv:2505.16297.
    """
    log_q, log_p = log_probabilities("todi", student_logits, teacher_logits, temperature, where)
    p, q = log_p.exp(), log_q.exp()
    either = (p > 0) | (q > 0)
    ratio = torch.where(either, log_p - log_q, 0.0)
    if forward_weight is None:
        w = torch.sigmoid(ratio).detach()
    elif forward_weight.shape == log_q.shape:
        w = upcast(forward_weight)
    else:
        raise ValueError(
            f"todi: forward_weight {tuple(forward_weight.shape)}; {tuple(log_q.shape)} is "
            "expected, one weight for every class of every position."
        )
    forward = torch.where(p > 0, w * p * torch.where(p > 0, ratio, 0.0), 0.0)
    reverse = torch.where(q > 0, (1 - w) * q * torch.where(q > 0, -ratio, 0.0), 0.0)
    return keep(squared(temperature) * (forward + reverse).sum(-1), where)


def _bent(x: Tensor, c: Tensor) -> Tensor:
    """expm1(c x) / c, and its limit, x, where c is 0."""
    divisor = torch.where(c == 0, 1.0, c)
    return torch.where(c == 0, x, torch.expm1(divisor * x) / divisor)


def _slope(x: Tensor, c: Tensor) -> Tensor:
    """The derivative of `_bent` by c: ((c x - 1) exp(c x) + 1) / c^2, or x^2 / 2 where c is 0."""
    divisor = torch.where(c == 0, 1.0, c)
    y = divisor * x
    away = (torch.where(y.isneginf(), 0.0, y) * y.exp() - torch.expm1(y)) / divisor**2
    return torch.where(c == 0, 0.5 * x * x, away)
