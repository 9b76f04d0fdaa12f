"""Families of divergences between two softmax distributions, and total variation."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.checks import between, positive
from .._shared.masks import keep
from .._shared.softmax import cross, log_probabilities, squared


def alpha_divergence(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    *,
    alpha: float | Tensor = 0.5,
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Alpha-divergence, the family between the two directions of KL.

        alpha_divergence = T^2 * (1 - sum_v p_v^alpha q_v^(1 - alpha)) / (alpha (1 - alpha))
        p = softmax(teacher / T),  q = softmax(student / T)

    Equals `kl` at alpha = 1 and `reverse_kl` at alpha = 0 (the limits, exactly), four times the
    squared Hellinger distance at 1/2, half of Pearson's chi-square at 2. ABKD's divergence of two
    numbers alpha and beta is this one where they sum to 1; elsewhere it is another.

    Args:
      student_logits: `[*batch, vocab]`. `-inf` means probability 0.
      teacher_logits: `[*batch, vocab]`.
      alpha: any real number; outside 0 < alpha < 1 classes that one model excludes give inf.
      temperature: T > 0, a number or a tensor `[*batch, 1]`, one T a position.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, non-negative; for 0 < alpha < 1 at most T^2 / (alpha (1 - alpha)).

    Example:
      >>> alpha_divergence(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]]), alpha=0.5)
      tensor([0.4527])

    Reference:
      Amari, Information Geometry and Its Applications, 2016; in distillation Wang et al.,
      ABKD, arXiv:2505.04560.
    """
    log_q, log_p = log_probabilities(
        "alpha_divergence", student_logits, teacher_logits, temperature, where
    )
    return keep(squared(temperature) * _alpha(log_p, log_q, alpha), where)


def renyi(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    *,
    alpha: float | Tensor = 0.5,
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Renyi divergence of order alpha of the student from the teacher.

        renyi = T^2 * log(sum_v p_v^alpha q_v^(1 - alpha)) / (alpha - 1)
        p = softmax(teacher / T),  q = softmax(student / T)

    Equals `kl` at alpha = 1 (the limit, exactly); grows with alpha.

    Args:
      student_logits: `[*batch, vocab]`. `-inf` means probability 0.
      teacher_logits: `[*batch, vocab]`.
      alpha: alpha > 0, the order.
      temperature: T > 0, a number or a tensor `[*batch, 1]`, one T a position.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, non-negative, in nats; inf if no class has probability in both.

    Example:
      >>> renyi(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]]), alpha=0.5)
      tensor([0.2402])

    Reference:
      Renyi, On Measures of Entropy and Information, 1961; van Erven and Harremoes, Renyi
      Divergence and Kullback-Leibler Divergence, arXiv:1206.2459.
    """
    positive("renyi", alpha=alpha)
    log_q, log_p = log_probabilities("renyi", student_logits, teacher_logits, temperature, where)
    alpha = _scalar(alpha, log_p)
    gap = 1 - alpha
    divisor = torch.where(gap == 0, 1.0, gap)
    divergence = _alpha(log_p, log_q, alpha)
    x = alpha * gap * divergence  # 1 - sum p^alpha q^(1 - alpha)
    # Near 0 log1p keeps the digits that the sum has lost; near 1 the sum keeps those of x.
    near = -torch.log1p(-torch.where(x < 0.5, x, 0.0)) / divisor
    overlap = torch.where(torch.isneginf(log_p), -torch.inf, alpha * log_p + gap * log_q)
    far = -torch.logsumexp(torch.where((x < 0.5)[..., None], 0.0, overlap), -1) / divisor
    values = torch.where(gap == 0, divergence, torch.where(x < 0.5, near, far))
    return keep(squared(temperature) * values, where)


def total_variation(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    *,
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Total variation distance of the two distributions.

        total_variation = 1/2 sum_v |p_v - q_v|
        p = softmax(teacher / T),  q = softmax(student / T)

    Symmetric. Not multiplied by T^2, so that it stays a distance; its gradient falls as 1/T.
    At p = q, where it has a kink, the gradient is 0.

    Args:
      student_logits: `[*batch, vocab]`. `-inf` means probability 0.
      teacher_logits: `[*batch, vocab]`.
      temperature: T > 0, a number or a tensor `[*batch, 1]`, one T a position.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, from 0 to 1.

    Example:
      >>> total_variation(torch.tensor([[0.0, -torch.inf]]), torch.tensor([[0.0, 0.0]]))
      tensor([0.5000])

    Reference:
      Wen et al., f-Divergence Minimization for Sequence-Level Knowledge Distillation,
      arXiv:2307.15190.
    """
    log_q, log_p = log_probabilities(
        "total_variation", student_logits, teacher_logits, temperature, where
    )
    return keep((log_p.exp() - log_q.exp()).abs().sum(-1) / 2, where)


def adaptive_kl(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    *,
    head: float | Tensor = 0.5,
    forward_weight: Float[Tensor, "*batch"] | None = None,
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Forward and reverse KL, weighted by where the student is wrong (AKL).

        adaptive_kl = w kl + (1 - w) reverse_kl,   w = g_head / (g_head + g_tail)

    with g = sum |p - q| over the head and over the tail: the head is the smallest set of most
    probable classes of the teacher whose probability reaches `head`, the class that crosses it
    included (as in the paper and in DSKD's code; the authors' code leaves that class out).

    Args:
      student_logits: `[*batch, vocab]`. `-inf` means probability 0.
      teacher_logits: `[*batch, vocab]`.
      head: 0 < head < 1, the teacher's probability in the head.
      forward_weight: `[*batch]`, w; if None that of `adaptive_kl_weight` of the same arguments,
        held constant, as published. Pass `adaptive_kl_weight(...)` to have gradients flow through
        w too: near convergence, where w is 0 / 0, they are noise.
      temperature: T > 0, a number or a tensor `[*batch, 1]`, one T a position.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, non-negative, in nats, T^2 included.

    Example:
      >>> adaptive_kl(torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[0.0, 1.0, 2.0]]))
      tensor([0.])

    Reference:
      Wu et al., Rethinking Kullback-Leibler Divergence in Knowledge Distillation for Large
      Language Models, arXiv:2404.02657.
    """
    between("adaptive_kl", 0, 1, ends="()", head=head)
    log_q, log_p = log_probabilities(
        "adaptive_kl", student_logits, teacher_logits, temperature, where
    )
    p, q, ratio = log_p.exp(), log_q.exp(), log_p - log_q
    if forward_weight is not None:
        _one_a_position(forward_weight, log_q)
    w = _head_share(p, q, head).detach() if forward_weight is None else forward_weight
    gap = (q - p).sum(-1)  # 0, as in relative_entropy
    values = w * (cross(p, ratio) + gap) + (1 - w) * (cross(q, -ratio) - gap)
    return keep(squared(temperature) * values, where)


def adaptive_kl_weight(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    *,
    head: float | Tensor = 0.5,
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Weight of the forward KL in `adaptive_kl`: the head's share of the student's error.

        w = g_head / (g_head + g_tail),   g = sum |p - q| over the head, over the tail

    Args:
      student_logits: `[*batch, vocab]`. `-inf` means probability 0.
      teacher_logits: `[*batch, vocab]`.
      head: 0 < head < 1, the teacher's probability in the head.
      temperature: T > 0, a number or a tensor `[*batch, 1]`, one T a position.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, from 0 to 1; 1/2 where the distributions agree.

    Example:
      >>> adaptive_kl_weight(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
      tensor([0.5000])

    Reference:
      Wu et al., arXiv:2404.02657.
    """
    between("adaptive_kl_weight", 0, 1, ends="()", head=head)
    log_q, log_p = log_probabilities(
        "adaptive_kl_weight", student_logits, teacher_logits, temperature, where
    )
    return keep(_head_share(log_p.exp(), log_q.exp(), head), where)


def _alpha(log_p: Tensor, log_q: Tensor, alpha: float | Tensor) -> Tensor:
    """-sum_v a_v expm1(e (log b_v - log a_v)) / (e (1 - e)), with e nearer to 0 than to 1.

    Here (a, b, e) = (p, q, 1 - alpha) or (q, p, alpha): the same number, since
    sum_v a_v = 1, without the loss of digits of 1 - sum_v p_v^alpha q_v^(1 - alpha).
    """
    if isinstance(alpha, Tensor):
        alpha = _scalar(alpha, log_p)
        forward = alpha >= 0.5
        a, b = torch.where(forward, log_p, log_q), torch.where(forward, log_q, log_p)
        e = torch.where(forward, 1 - alpha, alpha)
    else:
        a, b, e = (log_p, log_q, 1 - alpha) if alpha >= 0.5 else (log_q, log_p, alpha)
    ratio = torch.where(a.exp() > 0, b - a, 0.0)  # where a underflows, expm1 may overflow
    gap = (b.exp() - a.exp()).sum(-1)  # 0, as in relative_entropy
    return (gap - cross(a.exp(), _bent(ratio, e))) / (1 - e)


def _bent(ratio: Tensor, e: float | Tensor) -> Tensor:
    """expm1(e ratio) / e, and its limit, the ratio, where e is 0."""
    if not isinstance(e, Tensor):
        return torch.expm1(e * ratio) / e if e else ratio
    divisor = torch.where(e == 0, 1.0, e)
    return torch.where(e == 0, ratio, torch.expm1(divisor * ratio) / divisor)


def _head_share(p: Tensor, q: Tensor, head: float | Tensor) -> Tensor:
    """g_head / (g_head + g_tail), 1/2 for 0 / 0."""
    gap = (p - q).abs()
    ranked, order = p.sort(dim=-1, descending=True)
    in_head = ranked.cumsum(-1) - ranked < head  # the mass of the classes before this one
    g_head = torch.where(in_head, gap.gather(-1, order), 0.0).sum(-1)
    g = gap.sum(-1)
    apart = g > torch.finfo(g.dtype).tiny ** 0.5
    return torch.where(apart, g_head / torch.where(apart, g, 1.0), 0.5)


def _one_a_position(forward_weight: Tensor, logits: Tensor) -> None:
    if forward_weight.shape != logits.shape[:-1]:
        raise ValueError(
            f"adaptive_kl: forward_weight {tuple(forward_weight.shape)}; "
            f"{tuple(logits.shape[:-1])} is expected, one weight for every position."
        )


def _scalar(x: float | Tensor, like: Tensor) -> Tensor:
    return torch.as_tensor(x, dtype=like.dtype, device=like.device)
