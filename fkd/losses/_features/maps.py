"""Losses between feature maps `[batch, channels, *space]`; one value per sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.checks import equal_maps, one_of, per_sample, positive, same_space, whole
from .._shared.geometry import counted, norm, root, unit
from .._shared.masks import keep, soften


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


def cwd(
    student_map: Float[Tensor, "batch channels *space"],
    teacher_map: Float[Tensor, "batch channels *space"],
    *,
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """Channel-wise distillation: KL of the distributions of every channel over space.

        cwd = T^2 / C * sum_c sum_i p_ci (log p_ci - log q_ci)
        p_c = softmax over space (teacher_c / T),   q_c = softmax over space (student_c / T)

    Args:
      student_map: `[batch, channels, *space]`, C = channels.
      teacher_map: `[batch, channels, *space]`.
      temperature: T > 0; the paper uses 4 for segmentation.
      where: `[batch]`, True where a sample counts. Others yield 0 and no gradient.

    Returns:
      `[batch]`, non-negative, in nats. A constant added to a channel changes nothing.

    Example:
      >>> student, teacher = torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[0.0, 2.0]]])
      >>> cwd(student, teacher)
      tensor([0.3278])

    Reference:
      Shu et al., Channel-wise Knowledge Distillation for Dense Prediction, arXiv:2011.13256.
    """
    positive("cwd", temperature=temperature)
    student, teacher = equal_maps("cwd", where, student_map=student_map, teacher_map=teacher_map)
    log_p = F.log_softmax(soften(teacher.flatten(2), temperature), dim=-1)
    log_q = F.log_softmax(soften(student.flatten(2), temperature), dim=-1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
    return keep(temperature**2 * divergence.mean(-1), where)


def cat_kd(
    student_map: Float[Tensor, "batch classes *space"],
    teacher_map: Float[Tensor, "batch classes *space"],
    *,
    size: int | None = 2,
    where: Bool[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """Class attention transfer: distance of pooled, normalised class activation maps.

        cat_kd = 1/C * sum_c |s_c/|s_c| - t_c/|t_c||^2,   s_c, t_c = pooled maps of class c

    A class activation map is the classifier applied at every place before the pooling:
    `einsum("vc,bc...->bv...", classifier.weight, feature_map)`.

    Args:
      student_map: `[batch, classes, *space]`, C = classes.
      teacher_map: `[batch, classes, *space]`.
      size: every axis of space is average-pooled to this many places; None leaves the maps.
      where: `[batch]`, True where a sample counts. Others yield 0 and no gradient.

    Returns:
      `[batch]`, in [0, 4].

    Example:
      >>> cat_kd(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 5.0]]]))
      tensor([2.])

    Reference:
      Guo et al., Class Attention Transfer Based Knowledge Distillation, arXiv:2304.12777.
    """
    student, teacher = equal_maps("cat_kd", where, student_map=student_map, teacher_map=teacher_map)
    if size is not None:
        whole("cat_kd", 1, size=size)
        sizes = [size] * (student.ndim - 2)
        student, teacher = pooled(student, sizes), pooled(teacher, sizes)
    difference = unit(student.flatten(2)) - unit(teacher.flatten(2))
    return keep(difference.square().sum(-1).mean(-1), where)


def hcl(
    student_map: Float[Tensor, "batch channels *space"],
    teacher_map: Float[Tensor, "batch channels *space"],
    *,
    levels: Sequence[int] = (4, 2, 1),
    where: Bool[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """Hierarchical context loss: squared error of a pyramid of pooled maps (ReviewKD).

        hcl = sum_k w_k * mean (pool_k(s) - pool_k(t))^2 / sum_k w_k,   w_k = 2^-k

    k = 0 is the map itself, then the levels that are smaller than the map. ReviewKD sums this
    over the stages, with the student's maps fused from the deepest stage upwards.

    Args:
      student_map: `[batch, channels, *space]`, the fused map of a stage.
      teacher_map: `[batch, channels, *space]`.
      levels: sizes, each 1 or more, to which every axis of space is average-pooled.
      where: `[batch]`, True where a sample counts. Others yield 0 and no gradient.

    Returns:
      `[batch]`, non-negative.

    Example:
      >>> hcl(torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4))
      tensor([1.])

    Reference:
      Chen et al., Distilling Knowledge via Knowledge Review, arXiv:2104.09044.
    """
    student, teacher = equal_maps("hcl", where, student_map=student_map, teacher_map=teacher_map)
    for level in levels:
        whole("hcl", 1, levels=level)
    difference = student - teacher  # pooling is linear
    total, weights = difference.square().flatten(1).mean(-1), 1.0
    smaller = [level for level in levels if level < student.shape[2]]
    for k, level in enumerate(smaller, start=1):
        coarse = pooled(difference, [level] * (student.ndim - 2))
        total = total + 0.5**k * coarse.square().flatten(1).mean(-1)
        weights += 0.5**k
    return keep(total / weights, where)


def pearson(
    student_map: Float[Tensor, "batch channels *space"],
    teacher_map: Float[Tensor, "batch channels *space"],
    *,
    eps: float = 1e-6,
    where: Bool[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """Distance of standardised maps: Pearson correlation of every channel (PKD, detection).

        x' = (x - m_c) / (sd_c + eps),   m_c, sd_c over all samples and places of a channel
        value_b = 1/2 * mean_cp (s'_bcp - t'_bcp)^2,   mean_b value_b = 1 - mean_c r_c

    r_c is the correlation of student and teacher. A sample's value depends on the batch
    through m_c and sd_c; samples where `where` is False do not enter them.

    Args:
      student_map: `[batch, channels, *space]`.
      teacher_map: `[batch, channels, *space]`.
      eps: keeps constant channels at 0.
      where: `[batch]`, True where a sample counts.

    Returns:
      `[batch]`, non-negative; the mean over the samples is at most 2.

    Example:
      >>> s = torch.tensor([[[1.0, 2.0, 3.0]]])
      >>> bool(pearson(s, 5 * s + 1) < 1e-9), bool((pearson(s, -s) - 2).abs() < 1e-4)
      (True, True)

    Reference:
      Cao et al., PKD: General Distillation Framework for Object Detectors via Pearson
      Correlation Coefficient, arXiv:2207.02039.
    """
    student, teacher = equal_maps(
        "pearson", where, student_map=student_map, teacher_map=teacher_map
    )
    weight, count = counted(where, student)
    s, t = (_standardised(x.flatten(2), weight, count, eps) for x in (student, teacher))
    return keep(0.5 * (s - t).square().mean((1, 2)), where)


def _standardised(x: Tensor, weight: Tensor, count: Tensor, eps: float) -> Tensor:
    def mean(y: Tensor) -> Tensor:
        return ((weight[:, None, None] * y).sum((0, 2)) / (count * y.shape[-1]))[:, None]

    centred = x - mean(x)
    return centred / (root(mean(centred.square())) + eps)


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
            feature_map = flat.reshape(*last.shape[:-1], size).movedim(-1, axis)
    return feature_map
