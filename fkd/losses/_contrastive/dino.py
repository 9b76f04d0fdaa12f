"""Self-distillation with a centre that follows the teacher's outputs (DINO)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.checks import between, covers, floating, positive, whole
from .._shared.masks import fill, keep
from .._shared.products import product


class DINOState(NamedTuple):
    """The centre of the teacher's outputs for `dino`.

    Attributes:
      center: `[classes]`.
    """

    center: Tensor


def dino_init(
    classes: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> DINOState:
    """A centre of zeros for `dino`.

    Args:
      classes: width of the outputs of the projection heads.
      dtype: of the centre.
      device: of the centre.

    Returns:
      A `DINOState`.

    Example:
      >>> dino_init(2).center
      tensor([0., 0.])
    """
    whole("dino_init", 1, classes=classes)
    return DINOState(torch.zeros(classes, dtype=dtype, device=device))


def dino(
    student_logits: Float[Tensor, "*batch student_view classes"],
    teacher_logits: Float[Tensor, "*batch teacher_view classes"],
    *,
    state: DINOState,
    student_temperature: float | Tensor = 0.1,
    teacher_temperature: float | Tensor = 0.04,
    momentum: float | Tensor = 0.9,
    same_view: bool = False,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> tuple[Float[Tensor, "*batch"], DINOState]:
    """Cross-entropy to a centred and sharpened teacher, mean over pairs of different views.

        l = mean over i != j of - sum_c p_ic log q_jc
        p_i = softmax((t_i - center) / T_t),   q_j = softmax(s_j / T_s)
        new center = m center + (1 - m) mean of t over views and samples

    View j of the student and view j of the teacher are the same picture; the student may have
    further (small) views.

    Args:
      student_logits: `[*batch, student_view, classes]`, the teacher's views first.
      teacher_logits: `[*batch, teacher_view, classes]`.
      state: from `dino_init`, or the one returned by the step before.
      student_temperature: T_s > 0.
      teacher_temperature: T_t > 0, smaller: this sharpens.
      momentum: 0 <= m <= 1, of the centre.
      same_view: also count the pairs i == j. For a frozen teacher, or a single view.
      where: `[*batch]`, True where a sample counts. Others yield 0 and no gradient, and do not
        enter the centre.

    Returns:
      `[*batch]`, non-negative, in nats; and the new state, without gradient.

    Example:
      >>> s, t = torch.rand(4, 5, 3), torch.rand(4, 2, 3)
      >>> values, state = dino(s, t, state=dino_init(3))
      >>> torch.allclose(state.center, 0.1 * t.mean((0, 1)))
      True

    Reference:
      Caron et al., Emerging Properties in Self-Supervised Vision Transformers, arXiv:2104.14294.
    """
    positive("dino", student_temperature=student_temperature)
    positive("dino", teacher_temperature=teacher_temperature)
    between("dino", 0, 1, momentum=momentum)
    s, t = _views(student_logits, teacher_logits, state, same_view, where)
    center = state.center.to(s.dtype)
    log_q = F.log_softmax(s / student_temperature, dim=-1)
    p = ((t - center) / teacher_temperature).softmax(-1)
    pairs = product(-p, log_q.mT)  # [*batch, teacher_view, student_view]
    same = torch.eye(*pairs.shape[-2:], dtype=pairs.dtype, device=pairs.device)
    counts = torch.ones_like(same) if same_view else 1 - same
    values = (pairs * counts).sum((-2, -1)) / counts.sum()
    return keep(values, where), DINOState(_moved(state.center, t, momentum, where))


def _views(
    student: Tensor, teacher: Tensor, state: DINOState, same_view: bool, where: Tensor | None
) -> tuple[Tensor, ...]:
    floating("dino", student_logits=student, teacher_logits=teacher)
    s, t = student.shape, teacher.shape
    if len(s) < 2 or s[:-2] != t[:-2] or s[-1:] != t[-1:] or t[-1:] != state.center.shape:
        raise ValueError(
            f"dino: student_logits {tuple(s)}, teacher_logits {tuple(t)} and center "
            f"{tuple(state.center.shape)}; [*batch, view, classes] with the same batch and classes "
            "is expected."
        )
    if s[-2] == t[-2] == 1 and not same_view:
        raise ValueError(
            "dino: student_logits and teacher_logits have one view each, so there is no pair of "
            "different views. Pass same_view=True."
        )
    covers("dino", where, s[:-2])
    return fill(student, teacher, where=where)


def _moved(center: Tensor, t: Tensor, momentum: float | Tensor, where: Tensor | None) -> Tensor:
    weight = torch.ones(t.shape[:-2], dtype=t.dtype, device=t.device)
    weight = weight if where is None else where.to(t.dtype)
    number = weight.sum()
    mean = (t.mean(-2) * weight.unsqueeze(-1)).reshape(-1, t.shape[-1]).sum(0) / number.clamp(
        min=1.0
    )
    moved = momentum * center + (1 - momentum) * mean
    return torch.where(number > 0, moved, center).to(center.dtype).detach()
