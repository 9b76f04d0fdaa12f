"""Correlation losses of feature maps (DIST+): agreement up to a scale and a shift."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.checks import covers, floating, maps, same_shape
from .._shared.geometry import correlation
from .._shared.masks import fill, keep


def dist_channel(
    student_features: Float[Tensor, "batch channel *space"],
    teacher_features: Float[Tensor, "batch channel *space"],
    *,
    where: Bool[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """One minus Pearson's correlation over the channels, the mean over the pixels (DIST+).

        dist_channel = mean_x (1 - rho_c(student_:x, teacher_:x))

    (One published implementation rewards +rho here; the correlation is to be high.)

    Args:
      student_features: `[batch, channel, *space]`.
      teacher_features: `[batch, channel, *space]`.
      where: `[batch]`, True where a sample counts. Others yield 0 and no gradient.

    Returns:
      `[batch]`, from 0 to 2.

    Example:
      >>> dist_channel(torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[5.0], [9.0]]]))
      tensor([0.])

    Reference:
      Huang et al., DIST+: Knowledge Distillation From a Stronger Adaptive Teacher, TPAMI 2025.
    """
    same_shape("dist_channel", student_features=student_features, teacher_features=teacher_features)
    s, t = _features("dist_channel", student_features, teacher_features, where)
    return keep((1 - correlation(s, t, 1)).mean(-1), where)


def dist_spatial(
    student_features: Float[Tensor, "batch _ *space"],
    teacher_features: Float[Tensor, "batch _ *space"],
    *,
    where: Bool[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """One minus Pearson's correlation over the pixels, of the sum of the channels (DIST+).

        dist_spatial = 1 - rho_x(sum_c student_cx, sum_c teacher_cx)

    Args:
      student_features: `[batch, channel, *space]`.
      teacher_features: `[batch, channel, *space]`; the number of channels may differ.
      where: `[batch]`, True where a sample counts. Others yield 0 and no gradient.

    Returns:
      `[batch]`, from 0 to 2.

    Example:
      >>> dist_spatial(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[5.0, 3.0]]]))
      tensor([2.])

    Reference:
      Huang et al., DIST+: Knowledge Distillation From a Stronger Adaptive Teacher, TPAMI 2025.
    """
    s, t = _features("dist_spatial", student_features, teacher_features, where)
    student_map, teacher_map = s.sum(1), t.sum(1)
    same_shape("dist_spatial", student_map=student_map, teacher_map=teacher_map)
    return keep(1 - correlation(student_map, teacher_map, -1), where)


def _features(
    loss: str, student: Tensor, teacher: Tensor, where: Tensor | None
) -> tuple[Tensor, Tensor]:
    floating(loss, student_features=student, teacher_features=teacher)
    maps(loss, student_features=student, teacher_features=teacher)
    covers(loss, where, student.shape[:1])
    s, t = fill(student, teacher, where=where)
    return s.flatten(2), t.flatten(2)
