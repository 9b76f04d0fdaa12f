"""What losses between two softmax distributions share: T, its square, and 0 log 0 = 0."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import (
    HOT,
    axes,
    classes_last,
    covers,
    floating,
    hot_number,
    one_a_position,
    same_shape,
    temperature_fits,
)
from .masks import fill, soften, upcast

CLOSE = 0.1
"""Up to this difference of logs, the entries of a divergence are computed as a series."""


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

    See `checked`.
    """
    logits = checked(loss, where, layout, temperature=temperature, **pair)
    return tuple(soften(x, temperature) for x in logits)


def checked(
    loss: str,
    where: Tensor | None,
    layout: str = "*batch vocab",
    /,
    *,
    temperature: float | Tensor = 1.0,
    **pair: Tensor,
) -> tuple[Tensor, ...]:
    """The student's and the teacher's logits over one vocabulary: checked and masked.

    Args:
      loss: the name that starts every message.
      where: `[*batch]` or None.
      layout: the axes, as `axes` takes them.
      temperature: T > 0.
      pair: both logits, by the names of the arguments.
    """
    floating(loss, **pair)
    axes(loss, layout, **pair)
    same_shape(loss, **pair)
    first = next(iter(pair.values()))
    classes_last(loss, where, **pair)
    covers(loss, where, first.shape[:-1])
    one_a_position(loss, temperature, first)
    filled = fill(*pair.values(), where=where)
    temperature_fits(loss, temperature, filled[0].dtype)
    return filled


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


def compared(
    loss: str,
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float | Tensor,
    where: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`log q`, `log p`, and their difference with all its digits, at any temperature.

    At a high temperature both logs are about -log(vocab), and their difference is what rounding
    has left. It is that of the logits, less a constant of the position: `log sum_v q_v e^(t - s)`.
    None: that difference as it is, which has digits enough.
    """
    temperature = hot_number(temperature)
    if not isinstance(temperature, (int, float)) or temperature <= HOT:
        log_q, log_p = log_probabilities(loss, student_logits, teacher_logits, temperature, where)
        return log_q, log_p, None
    temperature_fits(loss, temperature, None)
    pair = {"student_logits": student_logits, "teacher_logits": teacher_logits}
    s, t = (soften(x, temperature) for x in softened(loss, where, **pair))
    log_q, log_p = F.log_softmax(s, dim=-1), F.log_softmax(t, dim=-1)
    ratio, exact = log_p - log_q, (t - s).detach()
    q = log_q.detach().exp()
    shift = (q * torch.where(q > 0, exact, 0.0).expm1()).sum(-1, keepdim=True).log1p()
    exact = exact - shift
    # The value is exact, the derivatives are those of the logs.
    known = (exact.abs() < CLOSE) & (ratio.detach().abs() < 2 * CLOSE)
    correction = torch.where(known, exact - torch.where(known, ratio.detach(), 0.0), 0.0)
    return log_q, log_p, ratio + correction


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


def relative_entropy(log_p: Tensor, log_q: Tensor, ratio: Tensor | None = None) -> Tensor:
    """KL(p | q) of two distributions: `sum_v p_v (log p_v - log q_v) + (q_v - p_v)`.

    The second part sums to 0. With it no entry is negative, what the two normalisers round away
    drops out, and the gradient near p = q is q - p, entry by entry; without it the gradient is
    q sum(p) - p, and sum(p) of a large vocabulary is not 1 in float32.

    Args:
      log_p, log_q: `[*batch, vocab]`.
      ratio: their difference, if it is known better than they are; see `compared`.
    """
    p, q = log_p.exp(), log_q.exp()
    if ratio is None:
        return cross(p, log_p - log_q) + (q - p).sum(-1)
    close = ratio.detach().abs() < CLOSE
    far = p * torch.where((p > 0) & ~close, ratio, 0.0) + (q - p)
    return torch.where(close, p * bend(torch.where(close, ratio, 0.0)), far).sum(-1)


def bend(x: Tensor) -> Tensor:
    """`exp(-x) - 1 + x` for |x| < 0.1, by its series: x^2 / 2 - x^3 / 6 + ..."""
    series = 1 - x / 10
    for k in (9, 8, 7, 6, 5, 4, 3):
        series = 1 - x / k * series
    return x * x / 2 * series


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
