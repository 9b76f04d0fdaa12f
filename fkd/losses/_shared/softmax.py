"""What losses between two softmax distributions share: T, its square, and 0 log 0 = 0."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import covers, floating, positive, same_shape
from .masks import fill, soften, upcast


def log_probabilities(
    loss: str,
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float | Tensor,
    where: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`log q` of the student and `log p` of the teacher, checked, masked and softened."""
    floating(loss, student_logits=student_logits, teacher_logits=teacher_logits)
    same_shape(loss, student_logits=student_logits, teacher_logits=teacher_logits)
    positive(loss, temperature=temperature)
    covers(loss, where, student_logits.shape[:-1])
    student_logits, teacher_logits = fill(student_logits, teacher_logits, where=where)
    log_q = F.log_softmax(soften(student_logits, temperature), dim=-1)
    log_p = F.log_softmax(soften(teacher_logits, temperature), dim=-1)
    return log_q, log_p


def cross(p: Tensor, log_ratio: Tensor) -> Tensor:
    """`sum_v p_v log_ratio_v`, where a class of probability 0 adds 0, not 0 * inf = nan."""
    return (p * torch.where(p > 0, log_ratio, 0.0)).sum(-1)


def squared(temperature: float | Tensor) -> float | Tensor:
    """T^2, ready to multiply values: a temperature `[*batch, 1]` loses the axis of the classes."""
    if not isinstance(temperature, Tensor) or temperature.ndim == 0:
        return temperature**2
    if temperature.shape[-1] != 1:
        raise ValueError(
            f"temperature {tuple(temperature.shape)} must be a number or end in an axis of 1, "
            "one temperature a position. Did you forget temperature[..., None]?"
        )
    return upcast(temperature).squeeze(-1) ** 2


def logsumexp(x: Tensor) -> Tensor:
    """logsumexp over the last axis, kept; -inf, with a gradient of 0, where all are -inf."""
    empty = x.isneginf().all(-1, keepdim=True)
    return torch.where(empty, -torch.inf, torch.where(empty, 0.0, x).logsumexp(-1, keepdim=True))
