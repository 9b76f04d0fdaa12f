"""What every loss does to its inputs first and to its values last.

`fill` before and `keep` after are the mask contract: a position where `where` is False has
the value 0 and the gradient 0, even if the inputs hold nan or inf there. One `torch.where`
is not enough, since 0 * nan = nan on the way back; see
https://github.com/pytorch/pytorch/issues/23156.
"""

from __future__ import annotations

import torch
from torch import Tensor


def upcast(x: Tensor) -> Tensor:
    """float16 and bfloat16 to float32; wider types as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def soften(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """`logits / T`. A T of 1.0 costs nothing: neither memory nor, compiled, the checks that
    PyTorch adds to a scaled softmax."""
    plain = not isinstance(temperature, Tensor) and temperature == 1
    return logits if plain else logits / temperature


def fill(*tensors: Tensor, where: Tensor | None, value: float = 0.0) -> tuple[Tensor, ...]:
    """Upcast the inputs, and replace the positions that do not count by `value`.

    Half precision becomes float32; of float32 and float64 together, all become float64.

    Args:
      tensors: `[*batch, *features]` each.
      where: `[*batch]`, True (or 1) where a position counts; checked by `covers` before.
      value: what excluded positions hold from here on.
    """
    tensors = _of_one_dtype(*map(upcast, tensors))
    if where is None:
        return tensors
    return tuple(_fill(x, where, value) for x in tensors)


def _of_one_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    wide = any(x.dtype == torch.float64 for x in tensors)
    return tuple(x.double() for x in tensors) if wide else tensors


def _fill(x: Tensor, where: Tensor, value: float) -> Tensor:
    excluded = ~where.bool().reshape(where.shape + (1,) * (x.ndim - where.ndim))
    return x.masked_fill(excluded, value)


def keep(values: Tensor, where: Tensor | None) -> Tensor:
    """The values where a position counts, 0 elsewhere."""
    return values if where is None else values.masked_fill(~where.bool(), 0.0)
