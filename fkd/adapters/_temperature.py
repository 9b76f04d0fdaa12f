"""Temperatures that are learned, with or against the student."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LearnableTemperature(nn.Module):
    """One learned temperature for all samples (global CTKD).

        T = start + span * sigmoid(g)

    CTKD makes training harder step by step: the gradient of g is multiplied by a number that
    goes from 0 to -1, so that T goes against the student. That number is the input.

    Args:
      start: lowest temperature.
      span: highest temperature minus the lowest.
      initial: g at the start of training.

    Shape:
      A number or a 0-d tensor (1.0: learn with the student; -1.0: against it) to `[]`.

    Example:
      >>> LearnableTemperature(start=1.0, span=20.0)(-0.5).item()
      11.0

    Reference:
      Li et al., Curriculum Temperature for Knowledge Distillation, arXiv:2211.16231.
    """

    def __init__(self, *, start: float = 1.0, span: float = 20.0, initial: float = 0.0) -> None:
        super().__init__()
        _check_range("LearnableTemperature", start, span)
        self.start, self.span = start, span
        self.logit = nn.Parameter(torch.tensor(float(initial)))

    def forward(self, gradient_scale: float | Tensor = 1.0) -> Float[Tensor, ""]:
        """The temperature."""
        return self.start + self.span * scale_gradient(self.logit, gradient_scale).sigmoid()


class InstanceTemperature(nn.Module):
    """A learned temperature for every sample, from the logits of both models (CTKD).

        T_b = start + span * sigmoid(W2 relu(norm(W1 [t_b, s_b])))

    Args:
      classes: number of logits of each model.
      width: size of the hidden layer.
      start: lowest temperature.
      span: highest temperature minus the lowest.

    Shape:
      Student and teacher logits `[batch, classes]`, and a number as for `LearnableTemperature`,
      to `[batch, 1]`: it broadcasts against the logits.

    Example:
      >>> InstanceTemperature(5)(torch.rand(3, 5), torch.rand(3, 5)).shape
      torch.Size([3, 1])

    Reference:
      Li et al., Curriculum Temperature for Knowledge Distillation, arXiv:2211.16231.
    """

    def __init__(
        self, classes: int, *, width: int = 128, start: float = 1.0, span: float = 20.0
    ) -> None:
        super().__init__()
        _check_range("InstanceTemperature", start, span)
        self.start, self.span = start, span
        self.mlp = nn.Sequential(
            nn.Linear(2 * classes, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, 1),
        )

    def forward(
        self,
        student_logits: Float[Tensor, "batch classes"],
        teacher_logits: Float[Tensor, "batch classes"],
        gradient_scale: float | Tensor = 1.0,
    ) -> Float[Tensor, "batch 1"]:
        """The temperatures. The gradient to the logits is scaled, too."""
        logit = self.mlp(torch.cat([teacher_logits, student_logits], -1))
        return self.start + self.span * scale_gradient(logit, gradient_scale).sigmoid()


class StudentTemperature(nn.Module):
    """The student's logits divided by a learned temperature of its own.

        y = x / exp(g)

    Args:
      initial: the temperature at the start of training.

    Shape:
      `[*batch, vocab]` to the same.

    Example:
      >>> StudentTemperature(2.0)(torch.tensor([2.0, 4.0])).detach()
      tensor([1., 2.])

    Reference:
      Guo et al., On Calibration of Modern Neural Networks, arXiv:1706.04599 (temperature scaling).
    """

    def __init__(self, initial: float = 1.0) -> None:
        super().__init__()
        if initial <= 0:
            raise ValueError(f"StudentTemperature: initial {initial}; more than 0 is expected.")
        self.log_temperature = nn.Parameter(torch.tensor(math.log(initial)))

    def forward(self, x: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch vocab"]:
        """The scaled logits."""
        return x / self.log_temperature.exp()


def scale_gradient(x: Tensor, scale: float | Tensor) -> Tensor:
    """`x`, with its gradient multiplied by `scale`."""
    return scale * x + (1 - scale) * x.detach()


def _check_range(adapter: str, start: float, span: float) -> None:
    if start <= 0 or span < 0:
        raise ValueError(f"{adapter}: start {start} and span {span}; start > 0, span >= 0.")
