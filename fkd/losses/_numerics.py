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


def axes(loss: str, layout: str, /, **tensors: Tensor) -> None:
    """Refuse tensors with other axes than the layout, such as "batch vocab" or "*batch vocab".

    Args:
      loss: the name that starts every message.
      layout: one word an axis; a word with a star stands for any number of them.
      tensors: by the names of the arguments.
    """
    words = layout.split()
    least = sum(not word.startswith("*") for word in words)
    for name, x in tensors.items():
        if x.ndim < least or (x.ndim > least and least == len(words)):
            more = "" if least == len(words) else " or more"
            raise ValueError(
                f"{loss}: {name} {tuple(x.shape)} has {x.ndim} axes; {least}{more} are expected, "
                f"[{', '.join(words)}]. Reshape it first."
            )


def floating(loss: str, **tensors: Tensor) -> None:
    """Refuse integer tensors, and single numbers, where logits or hidden states are meant."""
    for name, x in tensors.items():
        if x.ndim == 0:
            raise ValueError(
                f"{loss}: {name} () has no axes; a last axis for the classes or the features is "
                "expected. Was one entry taken too many?"
            )
        if not x.is_floating_point():
            raise ValueError(
                f"{loss}: {name} has dtype {x.dtype}; floating point is expected. "
                "Were labels or token ids passed in the place of logits?"
            )


def positive(loss: str, **numbers: float | Tensor | None) -> None:
    """Refuse temperatures and bounds of 0 or less, as far as it shows without a device: tensors
    are taken as they are."""
    for name, x in numbers.items():
        if isinstance(x, (int, float)) and not x > 0:
            raise ValueError(f"{loss}: {name} {x}; a number above 0 is expected.")
