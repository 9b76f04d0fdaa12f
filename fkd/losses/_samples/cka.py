"""Centred kernel alignment: as a similarity for reports, and as a loss.

The inputs of student and teacher may have different widths, and any number of positions:
flatten tokens into the batch to compare layers token by token.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.checks import one_of, positive
from .._shared.geometry import counted, norm, square_distance, unit
from .._shared.products import product
from .rkd import rows


def cka(
    student_features: Float[Tensor, "batch ..."],
    teacher_features: Float[Tensor, "batch ..."],
    *,
    kernel: str = "linear",
    bandwidth: float | Tensor = 1.0,
    where: Bool[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """Centred kernel alignment, a similarity of representations (not a loss).

        cka = <HKH, HLH> / (|HKH| |HLH|),   H = I - 1/n,   K, L = kernels of student, teacher
        linear: K_ij = x_i . x_j
        rbf:    K_ij = exp(-|x_i - x_j|^2 / (2 sigma^2)),   sigma = bandwidth * rms distance

    The rms is over pairs i != j (the paper takes the median, which is not smooth). Where one
    side is constant over the batch, the alignment is undefined and taken as 0.

    Args:
      student_features: `[batch, ...]`, flattened to `[batch, features]`.
      teacher_features: `[batch, ...]`; the number of features may differ.
      kernel: "linear" or "rbf".
      bandwidth: > 0, relative to the rms distance of the samples.
      where: `[batch]`, True where a sample counts.

    Returns:
      `[]`, in [0, 1]; 1 for equal representations up to rotation, scale and translation.

    Example:
      >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
      >>> bool(cka(x, 3 * x.flip(-1) + 1) > 0.9999)
      True

    Reference:
      Kornblith et al., Similarity of Neural Network Representations Revisited,
      arXiv:1905.00414.
    """
    k, l = _kernels("cka", student_features, teacher_features, kernel, bandwidth, where)
    return (k * l).sum()


def cka_linear(
    student_features: Float[Tensor, "batch ..."],
    teacher_features: Float[Tensor, "batch ..."],
    *,
    where: Bool[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """One minus the centred alignment of linear kernels.

        cka_linear = 1 - |Ys^T Yt|_F^2 / (|Ys^T Ys|_F |Yt^T Yt|_F),   Y = centred features

    Args:
      student_features: `[batch, ...]`, flattened to `[batch, features]`.
      teacher_features: `[batch, ...]`; the number of features may differ.
      where: `[batch]`, True where a sample counts. If none does, the value is 0.

    Returns:
      `[]`, one value for the batch, in [0, 1].

    Example:
      >>> cka_linear(torch.eye(3), torch.eye(3)[:, :2])
      tensor(0.1056)

    Reference:
      Kornblith et al., Similarity of Neural Network Representations Revisited,
      arXiv:1905.00414.
    """
    k, l = _kernels("cka_linear", student_features, teacher_features, "linear", 1.0, where)
    return _misalignment(k, l, where)


def cka_rbf(
    student_features: Float[Tensor, "batch ..."],
    teacher_features: Float[Tensor, "batch ..."],
    *,
    bandwidth: float | Tensor = 1.0,
    where: Bool[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """One minus the centred alignment of Gaussian kernels.

        cka_rbf = 1 - <HKH, HLH> / (|HKH| |HLH|)
        K_ij = exp(-|x_i - x_j|^2 / (2 sigma^2)),   sigma = bandwidth * rms distance

    See `cka`. Wide bandwidths approach `cka_linear`.

    Args:
      student_features: `[batch, ...]`, flattened to `[batch, features]`.
      teacher_features: `[batch, ...]`; the number of features may differ.
      bandwidth: > 0, relative to the rms distance of the samples.
      where: `[batch]`, True where a sample counts. If none does, the value is 0.

    Returns:
      `[]`, one value for the batch, in [0, 1].

    Example:
      >>> x = torch.eye(3)
      >>> cka_rbf(x, 2 * x)
      tensor(0.)

    Reference:
      Kornblith et al., Similarity of Neural Network Representations Revisited,
      arXiv:1905.00414.
    """
    k, l = _kernels("cka_rbf", student_features, teacher_features, "rbf", bandwidth, where)
    return _misalignment(k, l, where)


def _misalignment(k: Tensor, l: Tensor, where: Tensor | None) -> Tensor:
    # |k - l|^2 / 2 = 1 - <k, l> for matrices of norm 1, and accurate near equality.
    varies = (norm(k) > 0) & (norm(l) > 0)
    loss = torch.where(varies, 0.5 * (k - l).square().sum(), 1.0)
    if where is None:
        return loss if k.numel() else 0.0 * loss
    return torch.where(where.any(), loss, 0.0)


def _kernels(
    loss: str,
    student: Tensor,
    teacher: Tensor,
    kernel: str,
    bandwidth: float | Tensor,
    where: Tensor | None,
) -> tuple[Tensor, Tensor]:
    one_of(loss, "kernel", kernel, ("linear", "rbf"))
    positive(loss, bandwidth=bandwidth)
    weight, count = counted(where, (x := rows(loss, where, student, teacher))[0])
    k, l = (_centred_kernel(y, kernel, bandwidth, weight, count) for y in x)
    return k, l


def _centred_kernel(
    x: Tensor, kernel: str, bandwidth: float | Tensor, weight: Tensor, count: Tensor
) -> Tensor:
    """`HKH / |HKH|`, flattened; excluded samples have rows and columns of 0."""
    pairs = weight[:, None] * weight
    if kernel == "linear":
        x = (x - product(weight, x) / count) * weight[:, None]
        return unit(product(x, x.mT).flatten())
    square = square_distance(x) * pairs
    spread = square.sum() / (count * (count - 1)).clamp(min=1.0)
    scale = 2 * bandwidth**2 * torch.where(spread > 0, spread, 1.0)
    k = torch.exp(-square / scale) * pairs
    means = k.sum(-1) / count
    k = (k - means[:, None] - means + means.sum() / count) * pairs
    return unit(k.flatten())
