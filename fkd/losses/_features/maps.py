"""Losses between feature maps `[batch, channels, *space]`; one value per sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .._shared.checks import one_of, per_sample, temperature_fits, whole
from .._shared.geometry import norm, root, unit
from .._shared.masks import soften
from .places import Places, Where, equal_maps, space_maps


def attention_transfer(
    student_map: Float[Tensor, "batch student_channels *student_space"],
    teacher_map: Float[Tensor, "batch teacher_channels *teacher_space"],
    *,
    convention: str = "paper",
    pool: bool = False,
    where: Where | None = None,
) -> Float[Tensor, " batch"]:
    """Distance of spatial attention maps: where the energy of the channels lies.

        A = sum_c F_c^2 over space, flattened;   Q = A / |A|
        paper: |Q_s - Q_t|_2          code: 1/P * |Q_s - Q_t|_2^2

    The paper writes the distance, the authors' code the mean of its square over the P places;
    published weights (1000) belong to the latter. The paper's total has half of them, beta / 2,
    with a beta of 1000 over the number of places and samples. Channels may differ in number.

    Args:
      student_map: `[batch, channels, *space]`.
      teacher_map: `[batch, channels, *space]`.
      convention: "paper" or "code".
      pool: whether the larger map is average-pooled to the size of the smaller one first,
        on every axis of space. Otherwise the spaces must be equal. A mask of places is one of
        the pooled places.
      where: `[batch]`, True where a sample counts, or `[batch, *space]`, where a place does.
        Others yield 0 and no gradient.

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
    if pool:
        pair = per_sample(
            "attention_transfer", None, student_map=student_map, teacher_map=teacher_map
        )
        same_axes("attention_transfer", student_map=student_map, teacher_map=teacher_map)
        student_map, teacher_map = common_space(*pair)
    (student, teacher), places = space_maps(
        "attention_transfer", where, student_map=student_map, teacher_map=teacher_map
    )
    difference = energy(student) - energy(teacher)
    values = norm(difference) if convention == "paper" else places.mean(difference.square())
    return places.keep(values)


def energy(flat_map: Tensor) -> Tensor:
    """`[batch, places]` of length 1: the squares of `[batch, channels, places]` over channels."""
    return unit(flat_map.square().sum(1))


def cwd(
    student_map: Float[Tensor, "batch channels *space"],
    teacher_map: Float[Tensor, "batch channels *space"],
    *,
    temperature: float | Tensor = 1.0,
    where: Where | None = None,
) -> Float[Tensor, " batch"]:
    """Channel-wise distillation: KL of the distributions of every channel over space.

        cwd = T^2 / C * sum_c sum_i p_ci (log p_ci - log q_ci)
        p_c = softmax over space (teacher_c / T),   q_c = softmax over space (student_c / T)

    Args:
      student_map: `[batch, channels, *space]`, C = channels.
      teacher_map: `[batch, channels, *space]`.
      temperature: T > 0; the paper uses 4 for segmentation.
      where: `[batch]`, True where a sample counts, or `[batch, *space]`, where a place does.
        Others yield 0 and no gradient.

    Returns:
      `[batch]`, non-negative, in nats. A constant added to a channel changes nothing.

    Example:
      >>> student, teacher = torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[0.0, 2.0]]])
      >>> cwd(student, teacher)
      tensor([0.3278])

    Reference:
      Shu et al., Channel-wise Knowledge Distillation for Dense Prediction, arXiv:2011.13256.
    """
    (student, teacher), places = equal_maps(
        "cwd", where, student_map=student_map, teacher_map=teacher_map
    )
    temperature_fits("cwd", temperature, student.dtype)
    log_p = places.log_softmax(soften(teacher, temperature))
    log_q = places.log_softmax(soften(student, temperature))
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
    return places.keep(temperature**2 * divergence.mean(-1))


def cat_kd(
    student_map: Float[Tensor, "batch classes *space"],
    teacher_map: Float[Tensor, "batch classes *space"],
    *,
    size: int | None = 2,
    where: Where | None = None,
) -> Float[Tensor, " batch"]:
    """Class attention transfer: distance of pooled, normalised class activation maps.

        cat_kd = 1/C * sum_c |s_c/|s_c| - t_c/|t_c||^2,   s_c, t_c = pooled maps of class c

    A class activation map is the classifier applied at every place before the pooling:
    `einsum("vc,bc...->bv...", classifier.weight, feature_map)`. The authors' code also averages
    over the pooled places: with size 2 of two axes, its weights are divided by 4 here. With a
    mask of places a cell is the mean over its places that count, as in `hcl`.

    Args:
      student_map: `[batch, classes, *space]`, C = classes.
      teacher_map: `[batch, classes, *space]`.
      size: every axis of space is average-pooled to this many places; None leaves the maps.
      where: `[batch]`, True where a sample counts, or `[batch, *space]`, where a place does.
        Others yield 0 and no gradient.

    Returns:
      `[batch]`, in [0, 4].

    Example:
      >>> cat_kd(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 5.0]]]))
      tensor([2.])

    Reference:
      Guo et al., Class Attention Transfer Based Knowledge Distillation, arXiv:2304.12777.
    """
    (student, teacher), places = equal_maps(
        "cat_kd", where, student_map=student_map, teacher_map=teacher_map
    )
    if size is not None:
        whole("cat_kd", 1, size=size)
        space = student_map.shape[2:]
        student, _ = pooled_places(student, places, space, size)
        teacher, _ = pooled_places(teacher, places, space, size)
    difference = unit(student) - unit(teacher)
    return places.keep(difference.square().sum(-1).mean(-1))


def hcl(
    student_map: Float[Tensor, "batch channels *space"],
    teacher_map: Float[Tensor, "batch channels *space"],
    *,
    levels: Sequence[int] = (4, 2, 1),
    where: Where | None = None,
) -> Float[Tensor, " batch"]:
    """Hierarchical context loss: squared error of a pyramid of pooled maps (ReviewKD).

        hcl = sum_k w_k * mean (pool_k(s) - pool_k(t))^2 / sum_k w_k,   w_k = 2^-k

    k = 0 is the map itself, then the levels that are smaller than the map. ReviewKD sums this
    over the stages, with the student's maps fused from the deepest stage upwards. With a mask of
    places a cell is the mean over its places that count. The cells depend on the size of the
    map, so a padded map has other cells than the map alone.

    Args:
      student_map: `[batch, channels, *space]`, the fused map of a stage.
      teacher_map: `[batch, channels, *space]`.
      levels: sizes, each 1 or more, to which every axis of space is average-pooled.
      where: `[batch]`, True where a sample counts, or `[batch, *space]`, where a place does.
        Others yield 0 and no gradient.

    Returns:
      `[batch]`, non-negative.

    Example:
      >>> hcl(torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4))
      tensor([1.])

    Reference:
      Chen et al., Distilling Knowledge via Knowledge Review, arXiv:2104.09044.
    """
    (student, teacher), places = equal_maps(
        "hcl", where, student_map=student_map, teacher_map=teacher_map
    )
    for level in levels:
        whole("hcl", 1, levels=level)
    difference, space = student - teacher, student_map.shape[2:]  # pooling is linear
    total, weights = places.mean(difference.square().mean(1)), 1.0
    smaller = [level for level in levels if level < space[0]]
    for k, level in enumerate(smaller, start=1):
        coarse, cells = pooled_places(difference, places, space, level)
        total = total + 0.5**k * cells.mean(coarse.square().mean(1))
        weights += 0.5**k
    return places.keep(total / weights)


def pearson(
    student_map: Float[Tensor, "batch channels *space"],
    teacher_map: Float[Tensor, "batch channels *space"],
    *,
    eps: float = 1e-6,
    where: Where | None = None,
) -> Float[Tensor, " batch"]:
    """Distance of standardised maps: Pearson correlation of every channel (PKD, detection).

        x' = (x - m_c) / (sd_c + eps),   m_c, sd_c over all samples and places of a channel
        value_b = 1/2 * mean_cp (s'_bcp - t'_bcp)^2,   mean_b value_b = 1 - mean_c r_c

    r_c is the correlation of student and teacher. A sample's value depends on the batch
    through m_c and sd_c; samples and places where `where` is False do not enter them. With a
    mask of places the mean is over all that count in the batch, so a sample weighs as many.

    Args:
      student_map: `[batch, channels, *space]`.
      teacher_map: `[batch, channels, *space]`.
      eps: keeps constant channels at 0.
      where: `[batch]`, True where a sample counts, or `[batch, *space]`, where a place does.

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
    (student, teacher), places = equal_maps(
        "pearson", where, student_map=student_map, teacher_map=teacher_map
    )
    weight = places.fill(torch.ones_like(student[:, 0]))
    s, t = (_standardised(x, weight, eps) for x in (student, teacher))
    square = (0.5 * (s - t).square().mean(1) * weight).sum(-1)
    samples = (weight.sum(-1) > 0).to(weight.dtype).sum().clamp(min=1.0)
    return places.keep(square * samples / weight.sum().clamp(min=1.0))


def _standardised(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    def mean(y: Tensor) -> Tensor:
        return ((weight[:, None] * y).sum((0, 2)) / weight.sum().clamp(min=1.0))[:, None]

    centred = x - mean(x)
    return centred / (root(mean(centred.square())) + eps)


def same_axes(loss: str, **layers: Tensor) -> None:
    """Refuse two maps of which the larger is to be pooled, and that differ in axes."""
    (a, x), (b, y) = layers.items()
    if x.ndim != y.ndim:
        raise ValueError(
            f"{loss}: {a} {tuple(x.shape)} and {b} {tuple(y.shape)} must have the same number of "
            "axes, since the larger one is pooled. Reshape one of them first."
        )


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


def pooled_places(
    flat_map: Tensor, places: Places, space: Sequence[int], size: int
) -> tuple[Tensor, Places]:
    """`[batch, channels, cells]`, the mean over the places of every cell that count, and the
    cells that have any. Every axis of space is pooled to `size` cells."""
    sizes = [size] * len(space)
    coarse = pooled(flat_map.unflatten(-1, tuple(space)), sizes).flatten(2)
    if places.mask is None:
        return coarse, places
    mask = places.mask.to(flat_map.dtype).unflatten(-1, tuple(space)).unsqueeze(1)
    share = pooled(mask, sizes).flatten(2)
    some = share > 0
    return coarse / torch.where(some, share, 1.0), Places(places.samples, some[:, 0])
