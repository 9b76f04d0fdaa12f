"""How alike the layers of two models are: linear centred kernel alignment (CKA)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def linear_cka(
    student_states: Sequence[Float[Tensor, "*batch _"]],
    teacher_states: Sequence[Float[Tensor, "*batch _"]],
    *,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "student_layers teacher_layers"]:
    """Linear CKA of every student layer with every teacher layer.

        cka(X, Y) = ||X^T Y||^2 / (||X^T X|| ||Y^T Y||),   X, Y centred over the positions

    It does not change when a layer is rotated or scaled, and the widths may differ. With few
    positions against the width it is biased towards 1; give it some thousand.

    Args:
      student_states: `[*batch, d]` each, the hidden states of the layers, or any other
        features of the same positions.
      teacher_states: `[*batch, e]` each.
      where: `[*batch]`, True where a position counts, such as an attention mask.

    Returns:
      `[student layers, teacher layers]`, float64, in 0..1; 0 where a layer is constant.

    Example:
      >>> x = torch.tensor([[0.0, 1.0], [2.0, 3.0], [5.0, 4.0]])
      >>> linear_cka([x], [x.flip(-1), 3 * x]).round(decimals=6).tolist()
      [[1.0, 1.0]]

    Reference:
      Kornblith et al., Similarity of Neural Network Representations Revisited,
      arXiv:1905.00414.
    """
    student = [_centred("student", x, where) for x in student_states]
    teacher = [_centred("teacher", x, where) for x in teacher_states]
    cross = torch.stack([torch.stack([_squared(x.T @ y) for y in teacher]) for x in student])
    student_norm = torch.stack([_squared(x.T @ x).sqrt() for x in student])
    teacher_norm = torch.stack([_squared(y.T @ y).sqrt() for y in teacher])
    return _ratio(cross, student_norm, teacher_norm)


def _centred(model: str, x: Tensor, where: Tensor | None) -> Tensor:
    """The deviations from the mean, `[positions, d]`, with 0 where a position is left out."""
    if where is not None and where.shape != x.shape[:-1]:
        raise ValueError(
            f"linear_cka: where {tuple(where.shape)} must be the leading shape of the {model}'s "
            f"hidden states {tuple(x.shape)}: one True or False for every position."
        )
    x = x.detach().reshape(-1, x.shape[-1]).double()
    if where is None:
        return x - x.mean(0)
    counts = where.bool().reshape(-1, 1)
    mean = torch.where(counts, x, 0.0).sum(0) / counts.sum().clamp(min=1)
    return torch.where(counts, x - mean, 0.0)


def _squared(x: Tensor) -> Tensor:
    return x.square().sum()


def _ratio(cross: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
    norms = student[:, None] * teacher
    return torch.where(norms > 0, cross / norms.clamp(min=1e-300), 0.0).clamp(max=1.0)
