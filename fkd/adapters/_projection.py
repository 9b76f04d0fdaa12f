"""Maps of the last axis: from the student's width to the teacher's."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LinearProjection(nn.Module):
    """A linear map of the last axis, and a normalisation after it if wanted.

        y = norm(W x + b)

    Args:
      student_width: size of the last axis of the input.
      teacher_width: size of the last axis of the output.
      bias: whether there is a b.
      norm: "layer" for a layer norm, "batch" for a batch norm over all positions, or "none".

    Shape:
      `[*batch, student_width]` to `[*batch, teacher_width]`.

    Example:
      >>> LinearProjection(4, 6, norm="layer")(torch.rand(2, 3, 4)).shape
      torch.Size([2, 3, 6])

    Reference:
      Jiao et al., TinyBERT, arXiv:1909.10351 (without a normalisation);
      Miles and Mikolajczyk, Understanding the Role of the Projector in Knowledge Distillation,
      arXiv:2303.11098 (batch norm).
    """

    def __init__(
        self,
        student_width: int,
        teacher_width: int,
        *,
        bias: bool = True,
        norm: Literal["none", "layer", "batch"] = "none",
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(student_width, teacher_width, bias=bias)
        self.norm = last_norm("LinearProjection", norm, teacher_width)

    def forward(self, x: Float[Tensor, "*batch student"]) -> Float[Tensor, "*batch teacher"]:
        """The projected features."""
        y = self.linear(x)
        return self.norm(y.reshape(-1, y.shape[-1])).reshape(y.shape)


class MLPProjection(nn.Module):
    """Two linear maps of the last axis with a nonlinearity between them.

        y = W2 gelu(W1 x + b1) + b2

    Args:
      student_width: size of the last axis of the input.
      hidden_width: size between the two maps.
      teacher_width: size of the last axis of the output.

    Shape:
      `[*batch, student_width]` to `[*batch, teacher_width]`.

    Example:
      >>> MLPProjection(4, 8, 6)(torch.rand(2, 3, 4)).shape
      torch.Size([2, 3, 6])

    Reference:
      Chen et al., Improved Feature Distillation via Projector Ensemble, arXiv:2210.15274.
    """

    def __init__(self, student_width: int, hidden_width: int, teacher_width: int) -> None:
        super().__init__()
        self.first = nn.Linear(student_width, hidden_width)
        self.second = nn.Linear(hidden_width, teacher_width)

    def forward(self, x: Float[Tensor, "*batch student"]) -> Float[Tensor, "*batch teacher"]:
        """The projected features."""
        return self.second(nn.functional.gelu(self.first(x)))


class OrthogonalProjector(nn.Module):
    """A projection that keeps inner products: orthonormal columns (or rows) at every step.

        y = W x,   W = the first columns of exp(A - A^T)

    W^T W = 1 if the teacher is the wider, W W^T = 1 otherwise. Only the strictly lower triangle
    of A is used. VkD takes the smooth L1 distance of y to the layer-normalised features of the
    teacher.

    Args:
      student_width: size of the last axis of the input.
      teacher_width: size of the last axis of the output. If it is the smaller, W has
        orthonormal rows.

    Shape:
      `[*batch, student_width]` to `[*batch, teacher_width]`.

    Example:
      >>> w = OrthogonalProjector(2, 3).weight()
      >>> torch.allclose(w.T @ w, torch.eye(2), atol=1e-5)
      True

    Reference:
      Miles et al., VkD: Improving Knowledge Distillation using Orthogonal Projections,
      arXiv:2403.06213.
    """

    def __init__(self, student_width: int, teacher_width: int) -> None:
        super().__init__()
        self.student_width, self.teacher_width = student_width, teacher_width
        size = max(student_width, teacher_width)
        self.generator = nn.Parameter(torch.randn(size, size) / size**0.5)

    def weight(self) -> Float[Tensor, "teacher student"]:
        """`[teacher_width, student_width]`, orthonormal along the shorter axis."""
        lower = self.generator.tril(-1)
        rotation = torch.linalg.matrix_exp(lower - lower.mT)
        return rotation[: self.teacher_width, : self.student_width]

    def forward(self, x: Float[Tensor, "*batch student"]) -> Float[Tensor, "*batch teacher"]:
        """The projected features."""
        return nn.functional.linear(x, self.weight().to(x.dtype))


class LayerAttention(nn.Module):
    """A learned weighted mean of layers, the same for all inputs.

        y = sum_l softmax(g)_l x_l

    Args:
      layers: how many layers are mixed.

    Shape:
      `[*batch, layers, hidden]` to `[*batch, hidden]`.

    Example:
      >>> LayerAttention(3)(torch.tensor([[0.0], [3.0], [6.0]]))
      tensor([3.], grad_fn=<SumBackward1>)

    Reference:
      Peters et al., Deep Contextualized Word Representations, arXiv:1802.05365.
    """

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(layers))

    def forward(self, x: Float[Tensor, "*batch layer hidden"]) -> Float[Tensor, "*batch hidden"]:
        """The mixed layer."""
        if x.shape[-2] != self.logits.shape[0]:
            raise ValueError(
                f"LayerAttention: x {tuple(x.shape)}; {self.logits.shape[0]} layers are expected "
                "on the axis before the last."
            )
        return (self.logits.softmax(0).unsqueeze(-1) * x).sum(-2)


def last_norm(adapter: str, norm: str, width: int) -> nn.Module:
    """A normalisation of `[positions, width]`."""
    kinds: dict[str, type[nn.Module]] = {"layer": nn.LayerNorm, "batch": nn.BatchNorm1d}
    if norm == "none":
        return nn.Identity()
    if norm not in kinds:
        raise ValueError(f"{adapter}: norm {norm!r}; 'none', 'layer' or 'batch' is expected.")
    return kinds[norm](width)
