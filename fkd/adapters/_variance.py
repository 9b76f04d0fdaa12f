"""Means and scales of the teacher's features, predicted from the student's."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class VarianceHead(nn.Module):
    """Mean and log-scale of a Gaussian over the teacher's feature map (VID).

        mean = conv(relu(conv(relu(conv(x))))),   three 1x1 convolutions
        log_scale_c = 1/2 log v_c,   v_c = softplus(a_c) + minimum

    The variance v is learned for every channel, and does not depend on the input. Both outputs
    go to `fkd.losses.vid`.

    Args:
      student_channels: channels of the input.
      teacher_channels: channels of the teacher's map.
      middle: channels between the convolutions; the teacher's if None.
      initial: variance at the start.
      minimum: variance that is never gone below.

    Shape:
      `[batch, student_channels, height, width]` to the mean
      `[batch, teacher_channels, height, width]` and the log-scale `[teacher_channels]`.

    Example:
      >>> mean, log_scale = VarianceHead(4, 2)(torch.rand(3, 4, 5, 5))
      >>> mean.shape, log_scale.shape
      (torch.Size([3, 2, 5, 5]), torch.Size([2]))

    Reference:
      Ahn et al., Variational Information Distillation for Knowledge Transfer, arXiv:1904.05835.
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        *,
        middle: int | None = None,
        initial: float = 5.0,
        minimum: float = 1e-5,
    ) -> None:
        super().__init__()
        if not initial > minimum > 0:
            raise ValueError(
                f"VarianceHead: initial {initial} and minimum {minimum}; initial > minimum > 0 is "
                "expected."
            )
        middle = teacher_channels if middle is None else middle
        self.mean = nn.Sequential(
            nn.Conv2d(student_channels, middle, 1),
            nn.ReLU(),
            nn.Conv2d(middle, middle, 1),
            nn.ReLU(),
            nn.Conv2d(middle, teacher_channels, 1),
        )
        self.minimum = minimum
        start = math.log(math.expm1(initial - minimum))  # softplus(start) = initial - minimum
        self.raw_variance = nn.Parameter(torch.full((teacher_channels,), start))

    def forward(
        self, x: Float[Tensor, "batch student height width"]
    ) -> tuple[Float[Tensor, "batch teacher height width"], Float[Tensor, " teacher"]]:
        """The mean and the log-scale."""
        variance = F.softplus(self.raw_variance) + self.minimum
        return self.mean(x), 0.5 * variance.log()


class PADVariance(nn.Module):
    """Logarithm of the variance of every feature of a sample (PAD).

        log_variance = batch_norm(W x)

    In the paper's second stage the student and this head are trained together.

    Args:
      student_width: size of the student's embedding.
      teacher_width: size of the teacher's.

    Shape:
      `[batch, student_width]` to `[batch, teacher_width]`.

    Example:
      >>> PADVariance(4, 6)(torch.rand(3, 4)).shape
      torch.Size([3, 6])

    Reference:
      Zhang et al., Prime-Aware Adaptive Distillation, arXiv:2008.01458.
    """

    def __init__(self, student_width: int, teacher_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(student_width, teacher_width, bias=False)
        self.norm = nn.BatchNorm1d(teacher_width)

    def forward(self, x: Float[Tensor, "batch student"]) -> Float[Tensor, "batch teacher"]:
        """The log-variance."""
        return self.norm(self.linear(x))
