"""Attention-based fusion of the student's stages, from deep to shallow (ReviewKD)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ReviewFusion(nn.Module):
    """Fuses every stage of the student with all deeper ones, into the teacher's shapes.

        u_n = reduce_n(x_n),   u_k = a_k * reduce_k(x_k) + b_k * resize(u_{k+1})
        (a_k, b_k) = sigmoid(conv([reduce_k(x_k), resize(u_{k+1})])),   y_k = conv_3x3(u_k)

    ReviewKD sums `hcl(y_k, teacher stage k)` over the stages.

    Args:
      student_channels: channels of the student's stages, shallow to deep.
      teacher_channels: channels of the teacher's stages, as many.
      middle: channels of all u_k; the authors take the teacher's, at most 512.

    Shape:
      A sequence of `[batch, student_channels[k], height_k, width_k]` to a tuple of
      `[batch, teacher_channels[k], height_k, width_k]`.

    Example:
      >>> fuse = ReviewFusion((4, 8), (6, 12), middle=5)
      >>> [y.shape[1:] for y in fuse([torch.rand(2, 4, 6, 6), torch.rand(2, 8, 3, 3)])]
      [torch.Size([6, 6, 6]), torch.Size([12, 3, 3])]

    Reference:
      Chen et al., Distilling Knowledge via Knowledge Review, arXiv:2104.09044.
    """

    def __init__(
        self, student_channels: Sequence[int], teacher_channels: Sequence[int], *, middle: int
    ) -> None:
        super().__init__()
        if len(student_channels) != len(teacher_channels) or not student_channels:
            raise ValueError(
                f"ReviewFusion: teacher_channels {tuple(teacher_channels)} for student_channels "
                f"{tuple(student_channels)}; as many stages of both are expected."
            )
        self.reduce = nn.ModuleList(_normed(c, middle, 1) for c in student_channels)
        self.attend = nn.ModuleList(
            nn.Conv2d(2 * middle, 2, 1) for _ in range(len(student_channels) - 1)
        )
        self.expand = nn.ModuleList(_normed(middle, c, 3) for c in teacher_channels)

    def forward(
        self, maps: Sequence[Float[Tensor, "batch _ _ _"]]
    ) -> tuple[Float[Tensor, "batch _ _ _"], ...]:
        """The fused maps, shallow to deep."""
        if len(maps) != len(self.reduce):
            raise ValueError(f"ReviewFusion: {len(maps)} maps; {len(self.reduce)} are expected.")
        fused: list[Tensor] = []
        for k in reversed(range(len(maps))):
            x = self.reduce[k](maps[k])
            fused.append(x if not fused else self._fuse(k, x, fused[-1]))
        stages = zip(self.expand, reversed(fused), strict=True)
        return tuple(expand(u) for expand, u in stages)

    def _fuse(self, stage: int, x: Tensor, deeper: Tensor) -> Tensor:
        deeper = F.interpolate(deeper, size=x.shape[-2:], mode="nearest")
        gates = self.attend[stage](torch.cat([x, deeper], 1)).sigmoid()
        return x * gates[:, :1] + deeper * gates[:, 1:]


def _normed(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))
