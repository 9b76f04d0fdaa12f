"""Generation of the teacher's features from masked features of the student."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class MaskedGenerator(nn.Module):
    """Two 3x3 convolutions that restore the teacher's map from a masked student map (MGD).

        y = conv(relu(conv(keep * align(x))))

    The result goes to `fkd.losses.mgd`. The mask is an input: for a ratio of 0.65 of hidden
    positions, `torch.rand(batch, 1, height, width) > 0.65`; or `[batch, channels, 1, 1]` for
    hidden channels.

    Args:
      student_channels: channels of the input.
      teacher_channels: channels of the output. If they differ, align is a 1x1 convolution.

    Shape:
      `[batch, student_channels, height, width]` and a mask that broadcasts against
      `[batch, teacher_channels, height, width]`, to `[batch, teacher_channels, height, width]`.

    Example:
      >>> keep = torch.rand(2, 1, 5, 5) > 0.65
      >>> MaskedGenerator(4, 6)(torch.rand(2, 4, 5, 5), keep).shape
      torch.Size([2, 6, 5, 5])

    Reference:
      Yang et al., Masked Generative Distillation, arXiv:2205.01529.
    """

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        same = student_channels == teacher_channels
        self.align = nn.Identity() if same else nn.Conv2d(student_channels, teacher_channels, 1)
        self.generate = generation(teacher_channels)

    def forward(
        self,
        x: Float[Tensor, "batch student height width"],
        keep: Bool[Tensor, ...] | Float[Tensor, ...],
    ) -> Float[Tensor, "batch teacher height width"]:
        """The generated map."""
        x = self.align(x)
        if keep.ndim != 4 or any(k not in (1, n) for k, n in zip(keep.shape, x.shape, strict=True)):
            raise ValueError(
                f"MaskedGenerator: keep {tuple(keep.shape)}; [batch, 1, height, width] or "
                f"[batch, channels, 1, 1] for {tuple(x.shape)} is expected."
            )
        return self.generate(x * keep.to(x.dtype))


class TokenGenerator(nn.Module):
    """Restores the teacher's patch tokens from some of the student's (ViTKD, last layer).

        z_i = align(x_i) where keep_i, a learned token elsewhere
        y = conv(relu(conv(z)))   over the grid of patches

    ViTKD adds `LinearProjection`s and an mse for the first two layers.

    Args:
      student_width: size of a student token.
      teacher_width: size of a teacher token.
      grid: rows and columns of patches; the tokens are row after row, without a class token.

    Shape:
      `[batch, rows * columns, student_width]` and `[batch, rows * columns]` bool, to
      `[batch, rows * columns, teacher_width]`.

    Example:
      >>> keep = torch.rand(2, 6) > 0.5
      >>> TokenGenerator(4, 8, grid=(2, 3))(torch.rand(2, 6, 4), keep).shape
      torch.Size([2, 6, 8])

    Reference:
      Yang et al., ViTKD: Practical Guidelines for ViT Feature Distillation, arXiv:2209.02432.
    """

    def __init__(self, student_width: int, teacher_width: int, *, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.align = nn.Linear(student_width, teacher_width)
        self.token = nn.Parameter(torch.randn(teacher_width) * 0.02)
        self.generate = generation(teacher_width)

    def forward(
        self, x: Float[Tensor, "batch token student"], keep: Bool[Tensor, "batch token"]
    ) -> Float[Tensor, "batch token teacher"]:
        """The generated tokens."""
        if x.shape[1] != self.grid[0] * self.grid[1] or keep.shape != x.shape[:2]:
            raise ValueError(
                f"TokenGenerator: x {tuple(x.shape)} and keep {tuple(keep.shape)}; "
                f"{self.grid[0]} * {self.grid[1]} tokens are expected. Was the class token left in?"
            )
        z = torch.where(keep.unsqueeze(-1), self.align(x), self.token.to(x.dtype))
        return self.generate(z.mT.unflatten(-1, self.grid)).flatten(-2).mT


def generation(channels: int) -> nn.Sequential:
    """Two 3x3 convolutions with a ReLU between them."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1),
    )
