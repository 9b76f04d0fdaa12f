"""Losses about which activations matter: boundaries, margins, masked generation, attention.

Inputs are feature maps `[batch, channels, *space]` of one shape, or features `[batch, channels]`;
each sample gets one value. Where the paper sums over the features, so does the loss: divide the
weight by their number for a mean.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from .._shared.checks import between, one_of
from .._shared.geometry import unit
from .._shared.masks import upcast
from .places import Where, equal_features


def activation_boundary(
    student_preactivation: Float[Tensor, "batch ..."],
    teacher_preactivation: Float[Tensor, "batch ..."],
    *,
    margin: float | Tensor = 1.0,
    where: Where | None = None,
) -> Float[Tensor, " batch"]:
    """Transfer of activation boundaries: is a neuron on or off, with a margin.

        ab = sum_d relu(m - s_d)^2 if t_d > 0 else relu(m + s_d)^2

    Values before the ReLU. Only the teacher's sign enters, so its gradient is 0. Common codes
    have the weight 3/1000 for this sum, the mean over the samples.

    Args:
      student_preactivation: `[batch, ...]`, mapped to the teacher's shape.
      teacher_preactivation: `[batch, ...]`.
      margin: m >= 0.
      where: `[batch]`, True where a sample counts, or `[batch, *space]`, where a place does.
        Others yield 0 and no gradient.

    Returns:
      `[batch]`, non-negative; 0 iff every neuron is on the right side by the margin.

    Example:
      >>> activation_boundary(torch.tensor([[0.5, 2.0]]), torch.tensor([[3.0, -1.0]]))
      tensor([9.2500])

    Reference:
      Heo et al., Knowledge Transfer via Distillation of Activation Boundaries Formed by
      Hidden Neurons, arXiv:1811.03233.
    """
    between("activation_boundary", 0, math.inf, ends="[)", margin=margin)
    (student, teacher), places = equal_features(
        "activation_boundary",
        where,
        student_preactivation=student_preactivation,
        teacher_preactivation=teacher_preactivation,
    )
    toward = torch.where(teacher > 0, student, -student)
    return places.keep(places.fill((margin - toward).relu().square()).sum((1, 2)))


def partial_l2(
    student_map: Float[Tensor, "batch ..."],
    teacher_map: Float[Tensor, "batch ..."],
    *,
    where: Where | None = None,
) -> Float[Tensor, " batch"]:
    """Squared distance that leaves alone what is rightly below zero (feature overhaul).

        partial_l2 = sum_d (0 if s_d <= t_d <= 0 else (s_d - t_d)^2)

    The paper's teacher is `margin_relu` of the values before the ReLU.

    Args:
      student_map: `[batch, ...]`, mapped to the teacher's shape.
      teacher_map: `[batch, ...]`.
      where: `[batch]`, True where a sample counts, or `[batch, *space]`, where a place does.
        Others yield 0 and no gradient.

    Returns:
      `[batch]`, non-negative.

    Example:
      >>> partial_l2(torch.tensor([[-5.0, -1.0, 1.0]]), torch.tensor([[-1.0, -3.0, 4.0]]))
      tensor([13.])

    Reference:
      Heo et al., A Comprehensive Overhaul of Feature Distillation, arXiv:1904.01866.
    """
    (student, teacher), places = equal_features(
        "partial_l2", where, student_map=student_map, teacher_map=teacher_map
    )
    counts = (student > teacher) | (teacher > 0)
    return places.keep(torch.where(counts, (student - teacher).square(), 0.0).sum((1, 2)))


def margin_relu(
    teacher_map: Float[Tensor, "batch channels *space"], margin: Float[Tensor, " channels"]
) -> Float[Tensor, "batch channels *space"]:
    """The teacher's values before the ReLU, cut from below at a margin for every channel.

        margin_relu = max(x, m_c)

    Args:
      teacher_map: `[batch, channels, *space]`.
      margin: `[channels]`, negative; see `negative_mean`.

    Returns:
      `[batch, channels, *space]`.

    Example:
      >>> margin_relu(torch.tensor([[-3.0, 2.0]]), torch.tensor([-1.0, -1.0]))
      tensor([[-1.,  2.]])

    Reference:
      Heo et al., A Comprehensive Overhaul of Feature Distillation, arXiv:1904.01866.
    """
    if teacher_map.ndim < 2 or margin.shape != teacher_map.shape[1:2]:
        raise ValueError(
            f"margin_relu: margin has shape {tuple(margin.shape)}; one number for each of the "
            f"channels of the map {tuple(teacher_map.shape)} is expected."
        )
    return torch.maximum(teacher_map, margin.reshape(-1, *[1] * (teacher_map.ndim - 2)))


def negative_mean(
    mean: Float[Tensor, " channels"], std: Float[Tensor, " channels"]
) -> Float[Tensor, " channels"]:
    """Mean of the negative part of a normal distribution: the margin of `margin_relu`.

        m = E[x | x < 0] = mean - std * phi(mean / std) / Phi(-mean / std),   x ~ N(mean, std^2)

    In a network with batch normalisation, mean and std are its bias and |weight|. Exact for
    every mean; the authors' code returns -3 std where less than 0.1 % of the distribution is
    negative.

    Args:
      mean: `[channels]`.
      std: `[channels]`, positive.

    Returns:
      `[channels]`, negative.

    Example:
      >>> negative_mean(torch.tensor([0.0]), torch.tensor([1.0]))
      tensor([-0.7979])

    Reference:
      Heo et al., A Comprehensive Overhaul of Feature Distillation, arXiv:1904.01866.
    """
    mean, std = upcast(mean), upcast(std)
    z = mean / std
    # phi(z) / Phi(-z) = sqrt(2 / pi) / erfcx(z / sqrt 2); far out, z minus it cancels.
    mills = math.sqrt(2 / math.pi) / torch.special.erfcx(z / math.sqrt(2))
    w = 1 / torch.where(z > 10, z, 10.0)
    far = -w * (1 - w**2 * (2 - w**2 * (10 - 74 * w**2)))
    return std * torch.where(z > 10, far, z - mills)


def mgd(
    generated_map: Float[Tensor, "batch ..."],
    teacher_map: Float[Tensor, "batch ..."],
    *,
    where: Where | None = None,
) -> Float[Tensor, " batch"]:
    """Masked generative distillation: squared distance to what was generated from a part.

        mgd = sum_d (g_d - t_d)^2,   g = generator(mask * student_map)

    Generator and mask are given from outside: the loss sees the generated map. ViTKD
    (arXiv:2209.02432) uses the same distance for its last layer.

    Args:
      generated_map: `[batch, ...]`, the generator's output for the masked student map.
      teacher_map: `[batch, ...]`.
      where: `[batch]`, True where a sample counts, or `[batch, *space]`, where a place does.
        Others yield 0 and no gradient.

    Returns:
      `[batch]`, non-negative. Published weights (2e-5 to 7e-5) belong to this sum.

    Example:
      >>> mgd(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 3.0]]))
      tensor([5.])

    Reference:
      Yang et al., Masked Generative Distillation, arXiv:2205.01529.
    """
    (generated, teacher), places = equal_features(
        "mgd", where, generated_map=generated_map, teacher_map=teacher_map
    )
    return places.keep((generated - teacher).square().sum((1, 2)))


def factor_transfer(
    student_factor: Float[Tensor, "batch ..."],
    teacher_factor: Float[Tensor, "batch ..."],
    *,
    norm: str = "l1",
    where: Where | None = None,
) -> Float[Tensor, " batch"]:
    """Distance of normalised factors (factor transfer, knowledge translation, Grad-CAM maps).

        l1: sum_d |s_d/|s| - t_d/|t||          l2: sum_d (s_d/|s| - t_d/|t|)^2

    The factors are the outputs of the translator (student) and the paraphraser (teacher). The
    translation loss of He et al. (arXiv:1903.04688) and, between Grad-CAM maps, the attention
    loss of Learning without Memorizing (arXiv:1811.08051) have the same form.

    Args:
      student_factor: `[batch, ...]`, flattened.
      teacher_factor: `[batch, ...]`.
      norm: "l1" or "l2" (squared).
      where: `[batch]`, True where a sample counts, or `[batch, *space]`, where a place does.
        Others yield 0 and no gradient.

    Returns:
      `[batch]`, non-negative. Published weights belong to the mean over the features.

    Example:
      >>> factor_transfer(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 5.0]]))
      tensor([2.])

    Reference:
      Kim et al., Paraphrasing Complex Network: Network Compression via Factor Transfer,
      arXiv:1802.04977.
    """
    one_of("factor_transfer", "norm", norm, ("l1", "l2"))
    (student, teacher), places = equal_features(
        "factor_transfer", where, student_factor=student_factor, teacher_factor=teacher_factor
    )
    difference = unit(student.flatten(1)) - unit(teacher.flatten(1))
    values = difference.abs() if norm == "l1" else difference.square()
    return places.keep(values.sum(-1))
