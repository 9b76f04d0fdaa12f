"""Losses between the relations of the samples of a batch.

Each sample is an anchor and gets one value, so that the mean over the samples is the loss of
the paper. Inputs are `[batch, ...]`, flattened to `[batch, features]`; the widths of student
and teacher may differ. Samples where `where` is False are in no pair and no triplet, and do
not count in any mean. For several groups of samples, use `torch.vmap`.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.checks import per_sample
from .._shared.geometry import angle_cosines, counted, huber, pairwise_distance, unit
from .._shared.masks import keep
from .._shared.products import product


def similarity_preserving(
    student_features: Float[Tensor, "batch ..."],
    teacher_features: Float[Tensor, "batch ..."],
    *,
    where: Bool[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """Squared distance of the row-normalised similarity matrices of a batch.

        G = F F^T, each row divided by its Euclidean length
        value_i = 1/n * sum_j (Gs_ij - Gt_ij)^2,   mean_i value_i = |Gs - Gt|_F^2 / n^2

    Args:
      student_features: `[batch, ...]`, flattened to `[batch, features]`.
      teacher_features: `[batch, ...]`; the number of features may differ.
      where: `[batch]`, True where a sample counts; n is the number of those.

    Returns:
      `[batch]`, one value per sample, in [0, 4 / n].

    Example:
      >>> similarity_preserving(torch.eye(2), torch.ones(2, 3))
      tensor([0.2929, 0.2929])

    Reference:
      Tung and Mori, Similarity-Preserving Knowledge Distillation, arXiv:1907.09682.
    """
    student, teacher = rows("similarity_preserving", where, student_features, teacher_features)
    _, count = counted(where, student)
    difference = unit(product(student, student.mT)) - unit(product(teacher, teacher.mT))
    return keep(difference.square().sum(-1) / count, where)


def rkd_distance(
    student_features: Float[Tensor, "batch ..."],
    teacher_features: Float[Tensor, "batch ..."],
    *,
    where: Bool[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """Relational distillation of pairwise distances, each divided by its mean.

        D_ij = |x_i - x_j| / mu,   mu = mean over i != j of |x_i - x_j|
        value_i = 1/n * sum_j smooth_l1(Ds_ij, Dt_ij)

    The mean over the samples is the mean over all n^2 pairs, as in the authors' code. If all
    samples coincide, the distances are 0. The published weight is 25.

    Args:
      student_features: `[batch, ...]`, flattened to `[batch, features]`.
      teacher_features: `[batch, ...]`; the number of features may differ.
      where: `[batch]`, True where a sample counts; n is the number of those.

    Returns:
      `[batch]`, one value per sample, non-negative.

    Example:
      >>> student = torch.tensor([[0.0], [1.0], [2.0]])
      >>> rkd_distance(student, 4 * student)
      tensor([0., 0., 0.])

    Reference:
      Park et al., Relational Knowledge Distillation, arXiv:1904.05068.
    """
    student, teacher = rows("rkd_distance", where, student_features, teacher_features)
    weight, count = counted(where, student)
    pairs = weight[:, None] * weight
    values = huber(_relative(student, pairs, count), _relative(teacher, pairs, count))
    return keep((values * pairs).sum(-1) / count, where)


def _relative(x: Tensor, pairs: Tensor, count: Tensor) -> Tensor:
    distance = pairwise_distance(x) * pairs
    mu = distance.sum() / (count * (count - 1)).clamp(min=1.0)
    return distance / torch.where(mu > 0, mu, 1.0)


def rkd_angle(
    student_features: Float[Tensor, "batch ..."],
    teacher_features: Float[Tensor, "batch ..."],
    *,
    where: Bool[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """Relational distillation of the angles that any two samples make at a third.

        A_jik = cos of the angle at x_j between x_i and x_k
        value_j = 1/n^2 * sum_ik smooth_l1(As_jik, At_jik)

    The mean over the samples is the mean over all n^3 triplets, as in the authors' code. An
    angle with a side of length 0 has the cosine 0. The published weight is 50. Memory is
    n^3, whatever the number of features: the angles come from inner products.

    Args:
      student_features: `[batch, ...]`, flattened to `[batch, features]`.
      teacher_features: `[batch, ...]`; the number of features may differ.
      where: `[batch]`, True where a sample counts; n is the number of those.

    Returns:
      `[batch]`, one value per sample (as the vertex), in [0, 1.5].

    Example:
      >>> student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
      >>> bool(rkd_angle(student, 5 * student + 1).max() < 1e-6)
      True

    Reference:
      Park et al., Relational Knowledge Distillation, arXiv:1904.05068.
    """
    student, teacher = rows("rkd_angle", where, student_features, teacher_features)
    weight, count = counted(where, student)
    values = huber(_cosines(student, weight, count), _cosines(teacher, weight, count))
    return keep(product(product(values, weight), weight) / count**2, where)


def _cosines(x: Tensor, weight: Tensor, count: Tensor) -> Tensor:
    x = (x - product(weight, x) / count) * weight[:, None]
    return angle_cosines(x, pairwise_distance(x))


def rows(
    loss: str, where: Tensor | None, student_features: Tensor, teacher_features: Tensor
) -> tuple[Tensor, Tensor]:
    """Both inputs as `[batch, features]`, checked, filled and flattened."""
    student, teacher = per_sample(
        loss, where, student_features=student_features, teacher_features=teacher_features
    )
    return student.flatten(1), teacher.flatten(1)
