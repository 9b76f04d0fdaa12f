"""A target on the way from the student to the teacher (TAID), which moves on as the student learns.

The state goes in and a new one comes out, as in `fkd.losses.crd`."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.checks import between
from .._shared.masks import keep
from .._shared.softmax import relative_entropy, softened, squared


class TAIDState(NamedTuple):
    """How far the target of `taid` is, all 0-d float32 tensors.

    Attributes:
      t: the teacher's share of the target's logits.
      loss: mean loss of the step before; inf before the first.
      momentum: moving mean of the relative change of the loss.
    """

    t: Tensor
    loss: Tensor
    momentum: Tensor


def taid_init(start: float, *, device: torch.device | str | None = None) -> TAIDState:
    """The state of `taid` before the first step.

    Args:
      start: the teacher's first share, in [0, 1]; 0.4 in the paper.
      device: of the tensors.

    Returns:
      A `TAIDState`.

    Example:
      >>> taid_init(0.4).t
      tensor(0.4000)
    """
    if not isinstance(start, int | float):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"taid_init: start is {start!r}; a number is expected. If it has to be computed in a "
            "step: fkd.call(taid_init, ...)."
        )
    between("taid_init", 0, 1, start=start)
    loss = torch.tensor(float("inf"), device=device)
    return TAIDState(torch.tensor(float(start), device=device), loss, torch.zeros_like(loss))


def taid(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    *,
    state: TAIDState,
    floor: float | Tensor = 0.0,
    ceiling: float | Tensor = 1.0,
    rate: float | Tensor = 5e-4,
    momentum: float | Tensor = 0.99,
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> tuple[Float[Tensor, "*batch"], TAIDState]:
    """KL from a mixture of student and teacher that moves towards the teacher (TAID).

        taid = T^2 sum_v m_v log(m_v / q_v),   m = softmax(((1 - t) student + t teacher) / T)
        d = (L_before - L) / L_before,   M = mu M + (1 - mu) d,   L: the mean over the positions
        t = min(ceiling, max(floor, t + rate sigmoid(M) (1 - t)))

    The student inside of the mixture is a constant of the derivative. The values use the t that
    went in. The authors' code measures d of the cross-entropy instead of the KL; the gradient is
    the same.

    Args:
      student_logits: `[*batch, vocab]`. `-inf` means probability 0, in the mixture as well.
      teacher_logits: `[*batch, vocab]`, likewise.
      state: from `taid_init`, or the one returned by the step before.
      floor: t is never below; in the paper it rises in a straight line from the first t to 1
        over the run: `floor=fkd.schedules.linear(0.4, 1.0, steps)`.
      ceiling: t is never above.
      rate: of the adaptive steps, alpha of the paper.
      momentum: mu, in [0, 1), beta of the paper.
      temperature: T > 0, a number or a tensor `[*batch, 1]`, one T a position.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient. If none
        counts the state stays as it is.

    Returns:
      `[*batch]`, non-negative, in nats; and the new state, without gradient.

    Example:
      >>> values, state = taid(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]]),
      ...                      state=taid_init(0.5))
      >>> values, state.t
      (tensor([0.1201]), tensor(0.5000))

    Reference:
      Shing et al., TAID: Temporally Adaptive Interpolated Distillation for Efficient Knowledge
      Transfer in Language Models, arXiv:2501.16937.
    """
    between("taid", 0, 1, floor=floor, ceiling=ceiling)
    between("taid", 0, 1, ends="[)", momentum=momentum)
    pair = {"student_logits": student_logits, "teacher_logits": teacher_logits}
    s, z = softened("taid", where, temperature=temperature, **pair)
    t = state.t.detach().to(s.dtype)
    log_m = F.log_softmax(_mixture(s.detach(), z, t), dim=-1)
    values = relative_entropy(log_m, F.log_softmax(s, dim=-1))
    values = keep(squared(temperature) * values, where)
    new = _moved(state, _mean(values.detach(), where), floor, ceiling, rate, momentum)
    return values, new


def _mixture(student: Tensor, teacher: Tensor, t: Tensor) -> Tensor:
    """`(1 - t) student + t teacher`; -inf where either is, also for a t of 0 or 1."""
    excluded = student.isneginf() | teacher.isneginf()
    s, z = (x.masked_fill(excluded, 0.0) for x in (student, teacher))
    return (s + t * (z - s)).masked_fill(excluded, -torch.inf)


def _mean(values: Tensor, where: Tensor | None) -> Tensor:
    """The mean over the positions that count, nan if none does."""
    count = values.numel() if where is None else where.bool().sum()
    return (values.sum() / count).float()


def _moved(
    state: TAIDState,
    loss: Tensor,
    floor: float | Tensor,
    ceiling: float | Tensor,
    rate: float | Tensor,
    momentum: float | Tensor,
) -> TAIDState:
    """The state after a step of this mean loss; nothing moves at the first, and where none is."""
    before = state.loss
    change = (before - loss) / (before + 1e-15)
    moving = momentum * state.momentum + (1 - momentum) * change
    t = state.t + rate * torch.sigmoid(moving) * (1 - state.t)
    low, high = (torch.as_tensor(x, dtype=t.dtype, device=t.device) for x in (floor, ceiling))
    t = torch.minimum(high, torch.maximum(low, t))
    known = loss.isfinite()
    step = known & before.isfinite()
    return TAIDState(
        torch.where(step, t, state.t).detach(),
        torch.where(known, loss, before).detach(),
        torch.where(step, moving, state.momentum).detach(),
    )
