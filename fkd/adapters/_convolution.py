"""Maps of feature maps `[batch, channels, height, width]`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from jaxtyping import Float
from torch import Tensor, nn


class ConvRegressor(nn.Module):
    """A convolution from the student's feature map to the shape of the teacher's (FitNets).

        y = relu(norm(conv(x)))

    The convolution follows from the heights and widths: 3x3 with stride 2 if the student's are
    twice the teacher's, a transposed 4x4 with stride 2 if half, and otherwise, if the student's
    are not smaller, one without padding and a kernel of 1 + student - teacher.

    Args:
      student_shape: channels, height and width of the input.
      teacher_shape: channels, height and width of the output.
      norm: whether there is a batch norm.
      relu: whether there is a ReLU; leave it out if the teacher's features are taken before
        theirs.

    Shape:
      `[batch, *student_shape]` to `[batch, *teacher_shape]`.

    Example:
      >>> ConvRegressor((8, 4, 4), (16, 2, 2))(torch.rand(3, 8, 4, 4)).shape
      torch.Size([3, 16, 2, 2])

    Reference:
      Romero et al., FitNets: Hints for Thin Deep Nets, arXiv:1412.6550.
    """

    def __init__(
        self,
        student_shape: tuple[int, int, int],
        teacher_shape: tuple[int, int, int],
        *,
        norm: bool = True,
        relu: bool = True,
    ) -> None:
        _expect_shape("student_shape", student_shape)
        _expect_shape("teacher_shape", teacher_shape)
        super().__init__()
        self.student_shape = tuple(student_shape)
        channels = (student_shape[0], teacher_shape[0])
        self.conv = _resizing(channels, tuple(student_shape[1:]), tuple(teacher_shape[1:]), norm)
        self.norm = nn.BatchNorm2d(teacher_shape[0]) if norm else nn.Identity()
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(
        self, x: Float[Tensor, "batch student height width"]
    ) -> Float[Tensor, "batch teacher new_height new_width"]:
        """The feature map in the teacher's shape."""
        if tuple(x.shape[1:]) != self.student_shape:
            raise ValueError(
                f"ConvRegressor: x {tuple(x.shape)}; [batch, *{self.student_shape}] is expected, "
                "the student_shape given at construction."
            )
        return self.relu(self.norm(self.conv(x)))


class SimKDProjector(nn.Sequential):
    """A bottleneck of three convolutions from the student's channels to the teacher's (SimKD).

        y = block_1x1(block_3x3(block_1x1(x))),   block = relu(batch norm(conv))

    At test time it stays: the teacher's classifier reads its output.

    Args:
      student_channels: channels of the input.
      teacher_channels: channels of the output.
      factor: the bottleneck has teacher_channels / factor channels.

    Shape:
      `[batch, student_channels, height, width]` to `[batch, teacher_channels, height, width]`.

    Example:
      >>> SimKDProjector(8, 16)(torch.rand(3, 8, 4, 4)).shape
      torch.Size([3, 16, 4, 4])

    Reference:
      Chen et al., Knowledge Distillation with the Reused Teacher Classifier, arXiv:2203.14001.
    """

    def __init__(self, student_channels: int, teacher_channels: int, *, factor: int = 2) -> None:
        middle = teacher_channels // factor
        if middle < 1:
            raise ValueError(
                f"SimKDProjector: factor {factor}; at most the {teacher_channels} channels of "
                "the teacher are expected."
            )
        super().__init__(
            block(student_channels, middle, 1),
            block(middle, middle, 3),
            block(middle, teacher_channels, 1),
        )


class SRRLConnector(nn.Sequential):
    """A 1x1 convolution, a batch norm and a ReLU from the student's channels to the teacher's.

        y = relu(norm(W x + b))

    SRRL takes the mse of the pooled y to the teacher's features, and the mse of what the
    teacher's frozen classifier makes of them to the teacher's logits.

    Args:
      student_channels: channels of the last feature map of the student.
      teacher_channels: channels of the teacher's.

    Shape:
      `[batch, student_channels, height, width]` to `[batch, teacher_channels, height, width]`.

    Example:
      >>> SRRLConnector(8, 16)(torch.rand(3, 8, 4, 4)).shape
      torch.Size([3, 16, 4, 4])

    Reference:
      Yang et al., Knowledge Distillation via Softmax Regression Representation Learning,
      ICLR 2021.
    """

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__(*block(student_channels, teacher_channels, 1))


def block(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Convolution of the same space, batch norm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def _expect_shape(name: str, shape: object) -> None:
    """Refuse what is not channels, height and width."""
    what = "(channels, height, width) of a feature map"
    if not isinstance(shape, Sequence):
        raise TypeError(f"ConvRegressor: {name} is {shape!r}; {what} is expected.")
    sizes = tuple(cast(Sequence[object], shape))
    if len(sizes) != 3 or not all(isinstance(n, int) and n > 0 for n in sizes):
        raise ValueError(f"ConvRegressor: {name} is {sizes}; {what}, is expected.")


def _resizing(
    channels: tuple[int, int], student: tuple[int, ...], teacher: tuple[int, ...], norm: bool
) -> nn.Module:
    bias = not norm
    if all(s == 2 * t for s, t in zip(student, teacher, strict=True)):
        return nn.Conv2d(*channels, 3, stride=2, padding=1, bias=bias)
    if all(2 * s == t for s, t in zip(student, teacher, strict=True)):
        return nn.ConvTranspose2d(*channels, 4, stride=2, padding=1, bias=bias)
    kernel = [1 + s - t for s, t in zip(student, teacher, strict=True)]
    if min(kernel) < 1:
        raise ValueError(
            f"ConvRegressor: teacher_shape with space {teacher} for a student with {student}; "
            "half, twice, or anything not larger is expected. Pool the teacher's map first."
        )
    return nn.Conv2d(*channels, (kernel[0], kernel[1]), bias=bias)
