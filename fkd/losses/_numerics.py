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


def fill(*tensors: Tensor, where: Tensor | None, value: float = 0.0) -> tuple[Tensor, ...]:
    """Upcast the inputs, and replace the positions that do not count by `value`.

    Args:
      tensors: `[*batch, *features]` each.
      where: `[*batch]`, True (or 1) where a position counts.
      value: what excluded positions hold from here on.
    """
    tensors = tuple(upcast(x) for x in tensors)
    if where is None:
        return tensors
    return tuple(_fill(x, where, value) for x in tensors)


def _fill(x: Tensor, where: Tensor, value: float) -> Tensor:
    if x.shape[: where.ndim] != where.shape:
        raise ValueError(
            f"where {tuple(where.shape)} must be the leading shape of the inputs "
            f"{tuple(x.shape)}: one True or False for every position."
        )
    excluded = ~where.bool().reshape(where.shape + (1,) * (x.ndim - where.ndim))
    return x.masked_fill(excluded, value)


def keep(values: Tensor, where: Tensor | None) -> Tensor:
    """The values where a position counts, 0 elsewhere."""
    if where is None:
        return values
    if where.shape != values.shape:
        raise ValueError(
            f"where {tuple(where.shape)} must have the shape of the values "
            f"{tuple(values.shape)}: one True or False for every position."
        )
    return values.masked_fill(~where.bool(), 0.0)


def same_shape(loss: str, **pair: Tensor) -> None:
    """Refuse two tensors of different shapes; nothing is broadcast."""
    (a, x), (b, y) = pair.items()
    if x.shape != y.shape:
        raise ValueError(
            f"{loss}: {a} {tuple(x.shape)} and {b} {tuple(y.shape)} must have the same shape."
        )


def floating(loss: str, **tensors: Tensor) -> None:
    """Refuse integer tensors where logits or hidden states are meant."""
    for name, x in tensors.items():
        if not x.is_floating_point():
            raise ValueError(
                f"{loss}: {name} has dtype {x.dtype}; floating point is expected. "
                "Were labels or token ids passed in the place of logits?"
            )
