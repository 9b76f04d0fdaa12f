"""Factors of the teacher and of the student (factor transfer)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class Paraphraser(nn.Module):
    """An autoencoder of the teacher's feature map: its factor and its reconstruction.

        f = encode(x),   r = decode(f),   three 3x3 convolutions each

    It is trained first, with the mse of r to x, and frozen then; its factor is what the
    student's `Translator` is compared with.

    Args:
      teacher_channels: channels of the input.
      rate: the factor has teacher_channels * rate channels.

    Shape:
      `[batch, teacher_channels, height, width]` to the factor
      `[batch, teacher_channels * rate, height, width]` and the reconstruction, like the input.

    Example:
      >>> factor, reconstruction = Paraphraser(8)(torch.rand(2, 8, 5, 5))
      >>> factor.shape, reconstruction.shape
      (torch.Size([2, 4, 5, 5]), torch.Size([2, 8, 5, 5]))

    Reference:
      Kim et al., Paraphrasing Complex Network: Network Compression via Factor Transfer,
      arXiv:1802.04977.
    """

    def __init__(self, teacher_channels: int, *, rate: float = 0.5) -> None:
        super().__init__()
        factor = _factor("Paraphraser", teacher_channels, rate)
        c = teacher_channels
        self.encode = nn.Sequential(_layer(c, c), _layer(c, factor), _layer(factor, factor))
        self.decode = nn.Sequential(
            _layer(factor, factor, back=True), _layer(factor, c, back=True), _layer(c, c, back=True)
        )

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> tuple[
        Float[Tensor, "batch factor height width"], Float[Tensor, "batch channels height width"]
    ]:
        """The factor and the reconstruction."""
        factor = self.encode(x)
        return factor, self.decode(factor)


class Translator(nn.Sequential):
    """Three 3x3 convolutions from the student's feature map to the teacher's factor.

        f = encode(x)

    Args:
      student_channels: channels of the input.
      teacher_channels: channels that the `Paraphraser` reads.
      rate: that of the `Paraphraser`.

    Shape:
      `[batch, student_channels, height, width]` to
      `[batch, teacher_channels * rate, height, width]`.

    Example:
      >>> Translator(6, 8)(torch.rand(2, 6, 5, 5)).shape
      torch.Size([2, 4, 5, 5])

    Reference:
      Kim et al., Paraphrasing Complex Network: Network Compression via Factor Transfer,
      arXiv:1802.04977.
    """

    def __init__(self, student_channels: int, teacher_channels: int, *, rate: float = 0.5) -> None:
        factor = _factor("Translator", teacher_channels, rate)
        c = student_channels
        super().__init__(_layer(c, c), _layer(c, factor), _layer(factor, factor))


def _factor(adapter: str, channels: int, rate: float) -> int:
    factor = round(channels * rate)
    if factor < 1:
        raise ValueError(
            f"{adapter}: rate {rate}; at least 1 of {channels} channels is expected to be left."
        )
    return factor


def _layer(inputs: int, outputs: int, *, back: bool = False) -> nn.Sequential:
    kind = nn.ConvTranspose2d if back else nn.Conv2d
    conv = kind(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.1))
