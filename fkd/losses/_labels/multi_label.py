"""Multi-label losses: every class is a yes or no of its own. The mean over the classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.checks import covers, floating, same_shape
from .._shared.masks import fill, keep
from .._shared.softmax import softened, squared


def binary_cross_entropy(
    student_logits: Float[Tensor, "*batch classes"],
    labels: Float[Tensor, "*batch classes"]
    | Int[Tensor, "*batch classes"]
    | Bool[Tensor, "*batch classes"],
    *,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Binary cross-entropy of multi-label logits, the mean over the classes.

        binary_cross_entropy = -mean_c (y_c log q_c + (1 - y_c) log(1 - q_c))
        q = sigmoid(student)

    Labels are probabilities: 0 or 1, or soft. (Some implementations take the sum over the
    classes: this one times their number.)

    Args:
      student_logits: `[*batch, classes]`. `-inf` means probability 0.
      labels: `[*batch, classes]`, from 0 to 1; floats, integers or bool.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, non-negative, in nats.

    Example:
      >>> binary_cross_entropy(torch.tensor([[0.0, 0.0]]), torch.tensor([[1, 0]]))
      tensor([0.6931])

    Reference:
      Cox, The Regression Analysis of Binary Sequences, 1958.
    """
    floating("binary_cross_entropy", student_logits=student_logits)
    same_shape("binary_cross_entropy", student_logits=student_logits, labels=labels)
    covers("binary_cross_entropy", where, student_logits.shape[:-1])
    student_logits, y = fill(student_logits, labels.to(student_logits.dtype), where=where)
    return keep(
        -_expectation(y, F.logsigmoid(student_logits), F.logsigmoid(-student_logits)), where
    )


def binary_kl(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    *,
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """KL divergence between the yes-or-no distributions of every class, their mean.

        binary_kl = T^2 * mean_c (p_c log(p_c / q_c) + (1 - p_c) log((1 - p_c) / (1 - q_c)))
        p = sigmoid(teacher / T),  q = sigmoid(student / T)

    The one-versus-all reduction of multi-label distillation; the paper's sum over the classes
    is this times their number, and it has T = 1.

    Args:
      student_logits: `[*batch, vocab]`. `-inf` means probability 0.
      teacher_logits: `[*batch, vocab]`.
      temperature: T > 0, a number or a tensor `[*batch, 1]`, one T a position.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, non-negative, in nats.

    Example:
      >>> binary_kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
      tensor([0.1639])

    Reference:
      Yang et al., Multi-Label Knowledge Distillation, arXiv:2308.06453.
    """
    pair = {"student_logits": student_logits, "teacher_logits": teacher_logits}
    s, t = softened("binary_kl", where, temperature=temperature, **pair)
    yes = F.logsigmoid(t) - F.logsigmoid(s)
    no = F.logsigmoid(-t) - F.logsigmoid(-s)
    return keep(squared(temperature) * _expectation(t.sigmoid(), yes, no), where)


def _expectation(p: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """mean_c (p yes + (1 - p) no), where a probability of 0 adds 0, not 0 * inf = nan."""
    return (p * torch.where(p > 0, yes, 0.0) + (1 - p) * torch.where(p < 1, no, 0.0)).mean(-1)
