"""Losses between models of different vocabularies: distributions compared by rank.

Positions correspond one to one; how tokens of two tokenizers are aligned is not a loss.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.checks import axes, floating, positive, softenable, whole
from .._shared.masks import fill, keep, soften
from .._shared.softmax import cross


def uld(
    student_logits: Float[Tensor, "*batch student_vocab"],
    teacher_logits: Float[Tensor, "*batch teacher_vocab"],
    *,
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Distance of the sorted probabilities of two vocabularies (universal logit distillation).

        uld = sum_i |p_(i) - q_(i)|,   p_(1) >= p_(2) >= ..., the shorter one padded by 0
        p = softmax(teacher / T),  q = softmax(student / T)

    A Wasserstein distance with unit costs: blind to which class has a probability. Not
    multiplied by T^2.

    Args:
      student_logits: `[*batch, student_vocab]`. `-inf` means probability 0.
      teacher_logits: `[*batch, teacher_vocab]`.
      temperature: T > 0, a number or a tensor that broadcasts against the logits.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, from 0 to 2.

    Example:
      >>> uld(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.0, 0.0]]))
      tensor([1.])

    Reference:
      Boizard et al., Towards Cross-Tokenizer Distillation: the Universal Logit Distillation
      Loss for LLMs, arXiv:2402.12030.
    """
    q, p = _probabilities("uld", student_logits, teacher_logits, temperature, where)
    q, p = _padded(q.sort(-1, descending=True)[0], p.sort(-1, descending=True)[0])
    return keep((p - q).abs().sum(-1), where)


def multi_level_ot(
    student_logits: Float[Tensor, "batch length student_vocab"],
    teacher_logits: Float[Tensor, "batch length teacher_vocab"],
    *,
    k: int = 50,
    logarithmic: float | Tensor = 0.1,
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, "batch length"] | Int[Tensor, "batch length"] | None = None,
) -> Float[Tensor, "batch length"]:
    """Token level of MultiLevelOT: classes matched by rank in the whole sequence.

        multi_level_ot = sum_i |p_i - q_i| - logarithmic * sum_i p_i log q_i
        p = softmax(teacher / T),  q = softmax(student / T)

    where i runs over the k classes of the largest sum of probabilities over the sequence, each
    model's in the order of that sum (one order for all tokens, unlike `uld`). Relational within
    a sequence. The sequence level is `sinkhorn_ot`. A class of student probability 0 is left out
    of the second sum.

    Args:
      student_logits: `[batch, length, student_vocab]`. `-inf` means probability 0.
      teacher_logits: `[batch, length, teacher_vocab]`.
      k: how many classes, 1 or more; a vocabulary of fewer is padded by probability 0.
      logarithmic: weight of the second sum; beta of the paper.
      temperature: T > 0, a number or a tensor that broadcasts against the logits.
      where: `[batch, length]`, True where a token counts. Others yield 0 and take no part.

    Returns:
      `[batch, length]`, non-negative.

    Example:
      >>> x = torch.zeros(1, 1, 2)
      >>> multi_level_ot(x, x, logarithmic=1.0)
      tensor([[0.6931]])

    Reference:
      Cui et al., Multi-Level Optimal Transport for Universal Cross-Tokenizer Knowledge
      Distillation on Language Models, arXiv:2412.14528.
    """
    whole("multi_level_ot", 1, k=k)
    _sequences("multi_level_ot", student_logits, teacher_logits)
    q, p = _probabilities("multi_level_ot", student_logits, teacher_logits, temperature, where)
    q, p = _leading(q, k, where), _leading(p, k, where)
    log_q = torch.where(q > 0, torch.where(q > 0, q, 1.0).log(), 0.0)
    return keep((p - q).abs().sum(-1) - logarithmic * cross(p, log_q), where)


def sinkhorn_ot(
    student_logits: Float[Tensor, "batch length student_vocab"],
    teacher_logits: Float[Tensor, "batch length teacher_vocab"],
    *,
    k: int = 50,
    entropy: float | Tensor = 0.1,
    iterations: int = 20,
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, "batch length"] | Int[Tensor, "batch length"] | None = None,
) -> Float[Tensor, " batch"]:
    """Sequence level of MultiLevelOT: Sinkhorn distance between the tokens of two sequences.

        sinkhorn_ot = sum_ab P_ab C_ab,   C_ab = sum_i |p_ai - q_bi|

    with classes i matched as in `multi_level_ot`, and P the plan exp(-C / entropy) whose rows
    and columns are normalized in turn, `iterations` times. P sums to 1: the value is the mean
    cost a token (the paper's rows sum to 1: this times the number of tokens). Because of the
    entropy it is above 0 for equal sequences. Relational within a sequence.

    Args:
      student_logits: `[batch, length, student_vocab]`. `-inf` means probability 0.
      teacher_logits: `[batch, length, teacher_vocab]`.
      k: how many classes, 1 or more; a vocabulary of fewer is padded by probability 0.
      entropy: > 0, lambda of the paper.
      iterations: of the Sinkhorn algorithm, 1 or more.
      temperature: T > 0, a number or a tensor that broadcasts against the logits.
      where: `[batch, length]`, True where a token counts. Others take no part.

    Returns:
      `[batch]`, from 0 to 2; 0 where no token counts.

    Example:
      >>> sinkhorn_ot(torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[0.0, -torch.inf]]]))
      tensor([1.])

    Reference:
      Cui et al., arXiv:2412.14528; Cuturi, Sinkhorn Distances, arXiv:1306.0895.
    """
    whole("sinkhorn_ot", 1, k=k, iterations=iterations)
    positive("sinkhorn_ot", entropy=entropy)
    _sequences("sinkhorn_ot", student_logits, teacher_logits)
    q, p = _probabilities("sinkhorn_ot", student_logits, teacher_logits, temperature, where)
    q, p = _leading(q, k, where), _leading(p, k, where)
    cost = (p.unsqueeze(2) - q.unsqueeze(1)).abs().sum(-1)  # [batch, teacher, student]
    plan = torch.exp(-cost / entropy)
    if where is not None:
        plan = plan * (where.bool().unsqueeze(2) & where.bool().unsqueeze(1))
    for _ in range(iterations):
        plan = plan / _divisor(plan.sum(2, keepdim=True))
        plan = plan / _divisor(plan.sum(1, keepdim=True))
    return (plan * cost).sum((1, 2)) / _divisor(plan.sum((1, 2)))


def _divisor(total: Tensor) -> Tensor:
    """The total, 1 where it is 0: rows and columns of tokens that do not count stay 0."""
    return torch.where(total > 0, total, 1.0)


def _sequences(loss: str, student_logits: Tensor, teacher_logits: Tensor) -> None:
    pair = {"student_logits": student_logits, "teacher_logits": teacher_logits}
    axes(loss, "batch length vocab", **pair)


def _probabilities(
    loss: str,
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float | Tensor,
    where: Tensor | None,
) -> tuple[Tensor, Tensor]:
    floating(loss, student_logits=student_logits, teacher_logits=teacher_logits)
    if student_logits.shape[:-1] != teacher_logits.shape[:-1]:
        raise ValueError(
            f"{loss}: student_logits {tuple(student_logits.shape)} and teacher_logits "
            f"{tuple(teacher_logits.shape)} must agree in all axes but the last. "
            "Align the tokens of the two models first."
        )
    softenable(loss, where, student_logits, temperature, times_square=False)
    s, t = fill(student_logits, teacher_logits, where=where)
    return soften(s, temperature).softmax(-1), soften(t, temperature).softmax(-1)


def _padded(q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Both with as many classes, the new ones of probability 0."""
    size = max(q.shape[-1], p.shape[-1])
    return F.pad(q, (0, size - q.shape[-1])), F.pad(p, (0, size - p.shape[-1]))


def _leading(p: Tensor, k: int, where: Tensor | None) -> Tensor:
    """`[batch, length, k]`, the classes that lead in the sequence, in order; 0 beyond them."""
    counted = p if where is None else p * where.bool().unsqueeze(-1)
    order = counted.sum(-2, keepdim=True).topk(min(k, p.shape[-1]), dim=-1)[1]
    leading = p.gather(-1, order.expand(*p.shape[:-1], -1))
    return F.pad(leading, (0, k - leading.shape[-1]))
