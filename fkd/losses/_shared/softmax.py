"""What losses between two softmax distributions share: T, its square, and 0 log 0 = 0."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import axes, classes_last, covers, floating, positive, same_shape
from .masks import fill, soften, upcast


def softened(
    loss: str,
    where: Tensor | None,
    layout: str = "*batch vocab",
    /,
    *,
    temperature: float | Tensor = 1.0,
    **pair: Tensor,
) -> tuple[Tensor, ...]:
    """The student's and the teacher's logits over one vocabulary: checked, masked and softened.

    Args:
      loss: the name that starts every message.
      where: `[*batch]` or None.
      layout: the axes, as `axes` takes them.
      temperature: T > 0.
      pair: both logits, by the names of the arguments.
    """
    positive(loss, temperature=temperature)
    floating(loss, **pair)
    axes(loss, layout, **pair)
    same_shape(loss, **pair)
    first = next(iter(pair.values()))
    classes_last(loss, where, **pair)
    covers(loss, where, first.shape[:-1])
    return tuple(soften(x, temperature) for x in fill(*pair.values(), where=where))


def log_probabilities(
    loss: str,
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float | Tensor,
    where: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`log q` of the student and `log p` of the teacher, checked, masked and softened."""
    pair = {"student_logits": student_logits, "teacher_logits": teacher_logits}
    s, t = softened(loss, where, temperature=temperature, **pair)
    return F.log_softmax(s, dim=-1), F.log_softmax(t, dim=-1)


def probabilities(
    loss: str,
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float | Tensor,
    where: Tensor | None,
    layout: str = "*batch vocab",
) -> tuple[Tensor, Tensor]:
    """`q` of the student and `p` of the teacher, checked, masked and softened."""
    pair = {"student_logits": student_logits, "teacher_logits": teacher_logits}
    s, t = softened(loss, where, layout, temperature=temperature, **pair)
    return s.softmax(-1), t.softmax(-1)


def cross(p: Tensor, log_ratio: Tensor) -> Tensor:
    """`sum_v p_v log_ratio_v`, where a class of probability 0 adds 0, not 0 * inf = nan."""
    return (p * torch.where(p > 0, log_ratio, 0.0)).sum(-1)


def relative_entropy(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p | q) of two distributions: `sum_v p_v (log p_v - log q_v) + (q_v - p_v)`.

    The second part sums to 0. With it no entry is negative, what the two normalisers round away
    drops out, and the gradient near p = q is q - p, entry by entry; without it the gradient is
    q sum(p) - p, and sum(p) of a large vocabulary is not 1 in float32.
    """
    p = log_p.exp()
    return cross(p, log_p - log_q) + (log_q.exp() - p).sum(-1)


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
