"""Losses between feature maps `[batch, channels, *space]`; one value per sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ._checks import norm, one_of, per_sample, same_space, unit
from ._numerics import keep


def attention_transfer(
    student_map: Float[Tensor, "batch student_channels *student_space"],
    teacher_map: Float[Tensor, "batch teacher_channels *teacher_space"],
    *,
    convention: str = "paper",
    pool: bool = False,
    where: Bool[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """Distance of spatial attention maps: where the energy of the channels lies.

        A = sum_c F_c^2 over space, flattened;   Q = A / |A|
        paper: |Q_s - Q_t|_2          code: 1/P * |Q_s - Q_t|_2^2

    The paper writes the distance, the authors' code the mean of its square over the P places;
    published weights (1000) belong to the latter. Channels may differ in number.

    Args:
      student_map: `[batch, channels, *space]`.
      teacher_map: `[batch, channels, *space]`.
      convention: "paper" or "code".
      pool: whether the larger map is average-pooled to the size of the smaller one first,
        on every axis of space. Otherwise the spaces must be equal.
      where: `[batch]`, True where a sample counts. Others yield 0 and no gradient.

    Returns:
      `[batch]`; paper: in [0, sqrt 2], code: in [0, 2 / P].

    Example:
      >>> student, teacher = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[4.0, 3.0]]])
      >>> attention_transfer(student, student)
      tensor([0.])
      >>> attention_transfer(student, teacher, convention="code")
      tensor([0.1454])

    Reference:
      Zagoruyko and Komodakis, Paying More Attention to Attention, arXiv:1612.03928.
    """
    one_of("attention_transfer", "convention", convention, ("paper", "code"))
    student, teacher = per_sample(
        "attention_transfer", where, student_map=student_map, teacher_map=teacher_map
    )
    if pool:
        student, teacher = common_space(student, teacher)
    same_space("attention_transfer", student_map=student, teacher_map=teacher)
    difference = _energy(student) - _energy(teacher)
    values = norm(difference) if convention == "paper" else difference.square().mean(-1)
    return keep(values, where)


def _energy(feature_map: Tensor) -> Tensor:
    return unit(feature_map.square().sum(1).flatten(1))


def common_space(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool both maps `[batch, channels, *space]` to the smaller extent of every axis."""
    sizes = [min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True)]
    return pooled(student, sizes), pooled(teacher, sizes)


def pooled(feature_map: Tensor, sizes: Sequence[int]) -> Tensor:
    """Adaptive average pooling of the space axes of `[batch, channels, *space]` to `sizes`."""
    for axis, size in enumerate(sizes, start=2):
        if feature_map.shape[axis] != size:
            last = feature_map.movedim(axis, -1)
            flat = F.adaptive_avg_pool1d(last.flatten(0, -2), size)
            feature_map = flat.unflatten(0, last.shape[:-1]).movedim(-1, axis)
    return feature_map
