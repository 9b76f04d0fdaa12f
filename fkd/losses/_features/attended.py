"""Feature-map losses with attention weights: over layers, channels or places.

The weights of SemCKD and AFD come from learnable modules and are given as tensors; those of
FBKD are made of the maps themselves. One value per sample.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .._shared.checks import positive
from .._shared.geometry import norm, root, unit
from .._shared.masks import fill
from .maps import energy
from .places import Places, Where, equal_features, equal_maps, space_maps


def semckd(
    student_map: Float[Tensor, "batch ..."],
    teacher_map: Float[Tensor, "batch ..."],
    *,
    attention: Float[Tensor, " batch"],
    where: Where | None = None,
) -> Float[Tensor, " batch"]:
    """Semantic calibration of one pair of layers: attention times mean squared error.

        semckd = a * 1/D * sum_d (s_d - t_d)^2

    One term for each pair of layers; their sum over all pairs is the method's loss times the
    number of student layers. `attention[:, i, j]` of the attention module belongs to the
    student's layer i and the teacher's layer j, and sums to 1 over j.

    Args:
      student_map: `[batch, ...]`, the student's layer, mapped to the teacher's shape.
      teacher_map: `[batch, ...]`.
      attention: `[batch]`, the weight a of this pair, non-negative. It receives a gradient.
      where: `[batch]`, True where a sample counts, or `[batch, *space]`, where a place does.
        Others yield 0 and no gradient.

    Returns:
      `[batch]`, non-negative.

    Example:
      >>> s, t = torch.zeros(2, 3, 4), torch.ones(2, 3, 4)
      >>> semckd(s, t, attention=torch.tensor([0.25, 0.5]))
      tensor([0.2500, 0.5000])

    Reference:
      Chen et al., Cross-Layer Distillation with Semantic Calibration, arXiv:2012.03236.
    """
    (student, teacher), places = equal_features(
        "semckd", where, student_map=student_map, teacher_map=teacher_map
    )
    weight = _weights("semckd", attention, places, student_map.shape[:1])
    return places.keep(weight * places.mean((student - teacher).square().mean(1)))


def _weights(loss: str, attention: Tensor, places: Places, shape: torch.Size) -> Tensor:
    if attention.shape != shape:
        raise ValueError(
            f"{loss}: attention has shape {tuple(attention.shape)}; {tuple(shape)} is expected."
        )
    return fill(attention, where=places.samples)[0]


def afd(
    student_map: Float[Tensor, "batch student_channels *space"],
    teacher_map: Float[Tensor, "batch teacher_channels *space"],
    *,
    attention: Float[Tensor, " batch"],
    where: Where | None = None,
) -> Float[Tensor, " batch"]:
    """Attention-based feature matching of one pair of layers.

        afd = a * 1/P * |Q_s - Q_t|_2^2,   Q = n(sum_c F_c^2 over the P places)

    `attention_transfer` in its code convention, weighted by a learned attention between the
    layers: one term for each pair of layers.

    Args:
      student_map: `[batch, student_channels, *space]`.
      teacher_map: `[batch, teacher_channels, *space]`; the space must be the same.
      attention: `[batch]`, the weight a of this pair, non-negative. It receives a gradient.
      where: `[batch]`, True where a sample counts, or `[batch, *space]`, where a place does.
        Others yield 0 and no gradient.

    Returns:
      `[batch]`, non-negative.

    Example:
      >>> s, t = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
      >>> afd(s, t, attention=torch.tensor([0.5]))
      tensor([0.5000])

    Reference:
      Ji et al., Show, Attend and Distill, arXiv:2102.02973.
    """
    (student, teacher), places = space_maps(
        "afd", where, student_map=student_map, teacher_map=teacher_map
    )
    weight = _weights("afd", attention, places, student_map.shape[:1])
    difference = energy(student) - energy(teacher)
    return places.keep(weight * places.mean(difference.square()))


def afds(
    student_map: Float[Tensor, "batch channels *space"],
    teacher_map: Float[Tensor, "batch channels *space"],
    *,
    attention: Float[Tensor, "batch channels"],
    where: Where | None = None,
) -> Float[Tensor, " batch"]:
    """Attentive feature distillation: squared distance of channels, weighted by attention.

        afds = sum_c a_c * 1/P * |s_c/|s_c| - t_c/|t_c||^2

    Args:
      student_map: `[batch, channels, *space]`, P = number of places.
      teacher_map: `[batch, channels, *space]`.
      attention: `[batch, channels]`, the weights a, non-negative. They receive a gradient.
      where: `[batch]`, True where a sample counts, or `[batch, *space]`, where a place does.
        Others yield 0 and no gradient.

    Returns:
      `[batch]`, non-negative.

    Example:
      >>> s, t = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
      >>> afds(s, t, attention=torch.tensor([[0.5]]))
      tensor([0.5000])

    Reference:
      Wang et al., Pay Attention to Features, Transfer Learn Faster CNNs, ICLR 2020.
    """
    (student, teacher), places = equal_maps(
        "afds", where, student_map=student_map, teacher_map=teacher_map
    )
    weight = _weights("afds", attention, places, student_map.shape[:2])
    difference = unit(student) - unit(teacher)
    return places.keep((weight * places.mean(difference.square())).sum(-1))


def fbkd_attention(
    student_map: Float[Tensor, "batch channels *space"],
    teacher_map: Float[Tensor, "batch channels *space"],
    *,
    where: Where | None = None,
) -> Float[Tensor, " batch"]:
    """Attention transfer for detectors: distance of mean magnitudes over places and channels.

        A = mean_c |F_c| over places,   C = mean_p |F_p| over channels
        fbkd_attention = |A_s - A_t|_2 + |C_s - C_t|_2

    Args:
      student_map: `[batch, channels, *space]`, mapped to the teacher's channels.
      teacher_map: `[batch, channels, *space]`.
      where: `[batch]`, True where a sample counts, or `[batch, *space]`, where a place does.
        Others yield 0 and no gradient.

    Returns:
      `[batch]`, non-negative. The gradient at equality is 0.

    Example:
      >>> fbkd_attention(torch.zeros(1, 4, 9), torch.ones(1, 4, 9))
      tensor([5.])

    Reference:
      Zhang and Ma, Improve Object Detection with Feature-based Knowledge Distillation,
      ICLR 2021.
    """
    pair, places = equal_maps(
        "fbkd_attention", where, student_map=student_map, teacher_map=teacher_map
    )
    (places_s, channels_s), (places_t, channels_t) = (magnitudes(x, places) for x in pair)
    return places.keep(norm(places_s - places_t) + norm(channels_s - channels_t))


def magnitudes(flat_map: Tensor, places: Places) -> tuple[Tensor, Tensor]:
    """Mean magnitude of every place `[batch, places]` and of every channel `[batch, channels]`."""
    magnitude = flat_map.abs()
    return magnitude.mean(1), places.mean(magnitude)


def fbkd_masked(
    student_map: Float[Tensor, "batch channels *space"],
    teacher_map: Float[Tensor, "batch channels *space"],
    *,
    temperature: float | Tensor = 0.5,
    where: Where | None = None,
) -> Float[Tensor, " batch"]:
    """Attention-guided feature distance for detectors.

        M = P * softmax_p((A_s + A_t) / T),   N = C * softmax_c((C_s + C_t) / T)
        fbkd_masked = sqrt(sum_cp (s_cp - t_cp)^2 * M_p * N_c)

    A and C are the mean magnitudes of `fbkd_attention`.

    Args:
      student_map: `[batch, channels, *space]`, mapped to the teacher's channels.
      teacher_map: `[batch, channels, *space]`, C = channels, P = places.
      temperature: T > 0 of the two masks.
      where: `[batch]`, True where a sample counts, or `[batch, *space]`, where a place does.
        Others yield 0 and no gradient.

    Returns:
      `[batch]`, non-negative. The gradient at equality is 0.

    Example:
      >>> fbkd_masked(torch.zeros(1, 4, 9), torch.ones(1, 4, 9))
      tensor([6.])

    Reference:
      Zhang and Ma, Improve Object Detection with Feature-based Knowledge Distillation,
      ICLR 2021.
    """
    positive("fbkd_masked", temperature=temperature)
    (student, teacher), places = equal_maps(
        "fbkd_masked", where, student_map=student_map, teacher_map=teacher_map
    )
    places_s, channels_s = magnitudes(student, places)
    places_t, channels_t = magnitudes(teacher, places)
    m = places.spread((places_s + places_t) / temperature)
    n = F.softmax((channels_s + channels_t) / temperature, dim=-1) * channels_s.shape[-1]
    square = (student - teacher).square()
    return places.keep(root((square * m[:, None] * n[:, :, None]).sum((1, 2))))
