"""Logit losses that raise the teacher's weight on the label."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.checks import between, one_of
from .._shared.labels import check_labels, labels_index
from .._shared.masks import keep
from .._shared.softmax import cross, log_probabilities


def ofa(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    labels: Int[Tensor, "*batch"],
    *,
    gamma: float | Tensor = 1.5,
    convention: str = "paper",
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Adaptive target enhancement for models of different architectures (OFA-KD).

        paper: ofa = -(1 + p_y)^gamma log q_y - sum_{v != y} p_v log q_v
        code:  ofa = -((1 + p_y)^gamma - 1) log q_y - sum_{v != y} p_v^gamma log q_v
        p = softmax(teacher / T),  q = softmax(student / T)

    With gamma = 1 the first is `cross_entropy` + `soft_cross_entropy`, the second
    `soft_cross_entropy` alone (the authors add the label's term elsewhere). Not multiplied by
    T^2, as published. The student's logits come from its last layer, or from an exit of a
    stage with a classifier of its own.

    Args:
      student_logits: `[*batch, vocab]`. `-inf` means probability 0.
      teacher_logits: `[*batch, vocab]`.
      labels: `[*batch]`, integers from 0 to vocab - 1; anything where `where` is False.
      gamma: >= 1, the enhancement of the label.
      convention: `"paper"` or `"code"`.
      temperature: T > 0, a number or a tensor that broadcasts against the logits.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, non-negative, in nats. Not 0 at equality.

    Example:
      >>> x = torch.zeros(1, 2)
      >>> ofa(x, x, torch.tensor([0]), gamma=2.0)
      tensor([1.9062])

    Reference:
      Hao et al., One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge
      Distillation, arXiv:2310.19444.
    """
    one_of("ofa", "convention", convention, ("paper", "code"))
    between("ofa", 1, math.inf, ends="[)", gamma=gamma)
    check_labels("ofa", student_logits, labels)
    log_q, log_p = log_probabilities("ofa", student_logits, teacher_logits, temperature, where)
    classes = torch.arange(log_p.shape[-1], device=log_p.device)
    is_label = classes == labels_index(labels, where)
    p = log_p.exp()
    if convention == "paper":
        weight = torch.where(is_label, (1 + p) ** gamma, p)
    else:
        weight = torch.where(is_label, (1 + p) ** gamma - 1, (gamma * log_p).exp())
    return keep(-cross(weight, log_q), where)
