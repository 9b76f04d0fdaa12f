"""Correlation losses of feature maps (DIST+): agreement up to a scale and a shift."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from .._shared.geometry import correlation_distance
from .places import Where, equal_maps, space_maps


def dist_channel(
    student_features: Float[Tensor, "batch channel *space"],
    teacher_features: Float[Tensor, "batch channel *space"],
    *,
    where: Where | None = None,
) -> Float[Tensor, " batch"]:
    """One minus Pearson's correlation over the channels, the mean over the pixels (DIST+).

        dist_channel = mean_x (1 - rho_c(student_:x, teacher_:x))

    (One published implementation rewards +rho here; the correlation is to be high.)

    Args:
      student_features: `[batch, channel, *space]`.
      teacher_features: `[batch, channel, *space]`.
      where: `[batch]`, True where a sample counts, or `[batch, *space]`, where a place does.
        Others yield 0 and no gradient.

    Returns:
      `[batch]`, from 0 to 2.

    Example:
      >>> dist_channel(torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[5.0], [9.0]]]))
      tensor([0.])

    Reference:
      Huang et al., DIST+: Knowledge Distillation From a Stronger Adaptive Teacher, TPAMI 2025.
    """
    (s, t), places = equal_maps(
        "dist_channel", where, student_features=student_features, teacher_features=teacher_features
    )
    return places.keep(places.mean(correlation_distance(s, t, 1)))


def dist_spatial(
    student_features: Float[Tensor, "batch _ *space"],
    teacher_features: Float[Tensor, "batch _ *space"],
    *,
    where: Where | None = None,
) -> Float[Tensor, " batch"]:
    """One minus Pearson's correlation over the pixels, of the sum of the channels (DIST+).

        dist_spatial = 1 - rho_x(sum_c student_cx, sum_c teacher_cx)

    Args:
      student_features: `[batch, channel, *space]`.
      teacher_features: `[batch, channel, *space]`; the number of channels may differ.
      where: `[batch]`, True where a sample counts, or `[batch, *space]`, where a place does.
        Others yield 0 and no gradient.

    Returns:
      `[batch]`, from 0 to 2.

    Example:
      >>> dist_spatial(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[5.0, 3.0]]])).round()
      tensor([2.])

    Reference:
      Huang et al., DIST+: Knowledge Distillation From a Stronger Adaptive Teacher, TPAMI 2025.
    """
    (s, t), places = space_maps(
        "dist_spatial", where, student_features=student_features, teacher_features=teacher_features
    )
    return places.keep(correlation_distance(s.sum(1), t.sum(1), -1, places.mask))
