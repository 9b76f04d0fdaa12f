"""Instance relationship graph: edges between samples, and how a sample moves between layers."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.checks import equal_samples
from .._shared.geometry import counted, square_distance
from .._shared.masks import keep
from .rkd import rows


def irg_transformation(
    student_first: Float[Tensor, "batch ..."],
    teacher_first: Float[Tensor, "batch ..."],
    student_second: Float[Tensor, "batch ..."],
    teacher_second: Float[Tensor, "batch ..."],
    *,
    where: Bool[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """Transformation of the instance relationship graph: how far a sample moves between layers.

        L_b = |x_b - y_b|^2 / max_k |x_k - y_k|^2,   x, y = first and second layer of a model
        value_b = (Ls_b - Lt_b)^2

    The two layers of a model need one shape: pool the larger map, and map the channels. The
    paper keeps this transformation of the vertices and leaves out that of the edges. Where no
    sample moves, L is 0. Vertices are `logit_mse`, edges `irg_edge`.

    Args:
      student_first: `[batch, ...]`, an earlier layer, flattened to `[batch, features]`.
      teacher_first: `[batch, ...]`; the number of features may differ from the student's.
      student_second: `[batch, ...]`, a later layer, of the shape of `student_first`.
      teacher_second: `[batch, ...]`, like `teacher_first`.
      where: `[batch]`, True where a sample counts. The others do not enter the largest.

    Returns:
      `[batch]`, one value per sample, in [0, 1].

    Example:
      >>> zero, move = torch.zeros(2, 1), torch.tensor([[1.0], [2.0]])
      >>> irg_transformation(zero, zero, move, 3 * move.flip(0))
      tensor([0.5625, 0.5625])

    Reference:
      Liu et al., Knowledge Distillation via Instance Relationship Graph, CVPR 2019.
    """
    name = "irg_transformation"
    s = equal_samples(name, where, student_first=student_first, student_second=student_second)
    t = equal_samples(name, where, teacher_first=teacher_first, teacher_second=teacher_second)
    if student_first.shape[0] != teacher_first.shape[0]:
        raise ValueError(
            f"{name}: student_first {tuple(student_first.shape)} and teacher_first "
            f"{tuple(teacher_first.shape)} must have the same batch size."
        )
    return keep((_moved(*s) - _moved(*t)).square(), where)


def _moved(first: Tensor, second: Tensor) -> Tensor:
    return _relative((first - second).square().sum(-1))


def irg_edge(
    student_features: Float[Tensor, "batch ..."],
    teacher_features: Float[Tensor, "batch ..."],
    *,
    where: Bool[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """Edges of the instance relationship graph: squared distances, relative to the largest.

        E_ij = |x_i - x_j|^2 / max_kl |x_k - x_l|^2
        value_i = 1/n * sum_j (Es_ij - Et_ij)^2

    The vertices of the graph are logits: `logit_mse`. If all samples coincide, E is 0.

    Args:
      student_features: `[batch, ...]`, flattened to `[batch, features]`.
      teacher_features: `[batch, ...]`; the number of features may differ.
      where: `[batch]`, True where a sample counts; n is the number of those.

    Returns:
      `[batch]`, one value per sample, in [0, 1].

    Example:
      >>> irg_edge(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [2.0], [2.0]]))
      tensor([0.1875, 0.2083, 0.0208])

    Reference:
      Liu et al., Knowledge Distillation via Instance Relationship Graph, CVPR 2019.
    """
    student, teacher = rows("irg_edge", where, student_features, teacher_features)
    weight, count = counted(where, student)
    pairs = weight[:, None] * weight
    s, t = (_relative(square_distance(x) * pairs) for x in (student, teacher))
    return keep((s - t).square().sum(-1) / count, where)


def _relative(square: Tensor) -> Tensor:
    """Values >= 0 divided by the largest of them; as they are where all are 0, or none is there."""
    if square.numel() == 0:
        return square
    largest = square.amax()
    return square / torch.where(largest > 0, largest, 1.0)
