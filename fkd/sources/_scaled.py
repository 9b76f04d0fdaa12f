"""Hidden states in 8 bits a number, with a scale for each position."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fkd._refs.derived import call
from fkd._refs.refs import Ref

from ._errors import SourceError

_FLOATS = (torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True, eq=False)
class ScaledTensor:
    """A tensor in 8 bits a number: `numbers * scale`.

    Attributes:
      numbers: `[*batch, features]`.
      scale: `[*batch, 1]`, float32.
      dtype: of the tensor that they stand for.
    """

    numbers: Tensor
    scale: Tensor
    dtype: torch.dtype

    def tensor(self) -> Tensor:
        """The tensor, rounded."""
        return (self.numbers.float() * self.scale).to(self.dtype)


@dataclass(frozen=True)
class Scaled:
    """A function from hidden states to 8 bits a number; see `scaled`, which makes it."""

    dtype: torch.dtype = torch.int8

    def __call__(self, x: Tensor) -> ScaledTensor:
        """Hidden states `[*batch, features]` in 8 bits a number.

        Raises:
          SourceError: they are no numbers with a fraction.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point() or not x.ndim:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise SourceError(f"{self!r}: hidden states [*batch, features] are expected.")
        most = 127.0 if self.dtype == torch.int8 else torch.finfo(self.dtype).max
        scale = x.detach().float().abs().amax(-1, keepdim=True) / most
        numbers = x.float() / torch.where(scale > 0, scale, 1.0)
        rounded = numbers.round() if self.dtype == torch.int8 else numbers
        return ScaledTensor(rounded.to(self.dtype), scale, x.dtype)

    def computed(self, ref: Ref) -> Ref:
        """What the teacher computes for a ref."""
        return call(self, ref)

    @property
    def __name__(self) -> str:
        return repr(self)

    def __repr__(self) -> str:
        return f"scaled({self.dtype})"


def scaled(dtype: torch.dtype = torch.int8) -> Scaled:
    """Keep hidden states in 8 bits a number, with a scale for each position (its largest number).

        cache(objective, loader, folder, keep={teacher.hidden_states[-1]: scaled()})

    The terms get them in the dtype of the teacher. The error of a number x of a position whose
    largest is m: with `torch.int8` at most m / 254; with `torch.float8_e4m3fn` at most
    max(|x| / 16, m / 459,000); with `torch.float8_e5m2` at most |x| / 8 of all but the smallest.

    Bytes for a position: 1 for each feature, and 4 for the scale.

    Args:
      dtype: `torch.int8`, `torch.float8_e4m3fn` or `torch.float8_e5m2`.

    Example:
      >>> fkd.sources.scaled()(torch.tensor([[-1.0, 0.5]])).tensor()
      tensor([[-1.0000,  0.5039]])
    """
    if dtype not in (torch.int8, *_FLOATS):
        raise SourceError(
            f"scaled: {dtype} cannot be scaled. Choose torch.int8, torch.float8_e4m3fn or "
            "torch.float8_e5m2."
        )
    return Scaled(dtype)
