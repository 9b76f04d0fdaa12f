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

    Args:
      tensors: `[*batch, *features]` each.
      where: `[*batch]`, True (or 1) where a position counts; checked by `covers` before.
      value: what excluded positions hold from here on.
    """
    tensors = tuple(upcast(x) for x in tensors)
    if where is None:
        return tensors
    return tuple(_fill(x, where, value) for x in tensors)


def _fill(x: Tensor, where: Tensor, value: float) -> Tensor:
    excluded = ~where.bool().reshape(where.shape + (1,) * (x.ndim - where.ndim))
    return x.masked_fill(excluded, value)


def keep(values: Tensor, where: Tensor | None) -> Tensor:
    """The values where a position counts, 0 elsewhere."""
    return values if where is None else values.masked_fill(~where.bool(), 0.0)


def covers(loss: str, where: Tensor | None, shape: tuple[int, ...], *, name: str = "where") -> None:
    """Refuse a mask that has not exactly one True or False for every position.

    Args:
      loss: the name that starts every message.
      where: the mask, called `name`; nothing is broadcast.
      shape: `[*batch]`, that of the positions.
      name: of the argument.
    """
    if where is None:
        return
    if where.shape != shape:
        raise ValueError(
            f"{loss}: {name} has shape {tuple(where.shape)}; {tuple(shape)} is expected, "
            "one True or False for every position."
        )
    if where.dtype.is_floating_point or where.dtype.is_complex:
        raise ValueError(
            f"{loss}: {name} has dtype {where.dtype}; bool or 0/1 integers are expected. "
            f"Compare it: {name} > 0."
        )


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


def between(
    loss: str, low: float, high: float, /, *, ends: str = "[]", **numbers: float | Tensor
) -> None:
    """Refuse Python numbers outside an interval; `ends` says which of its ends belong to it."""
    for name, x in numbers.items():
        if not isinstance(x, (int, float)):
            continue
        above = x >= low if ends[0] == "[" else x > low
        below = x <= high if ends[1] == "]" else x < high
        if not (above and below):
            raise ValueError(
                f"{loss}: {name} {x}; a number in {ends[0]}{low}, {high}{ends[1]} is expected."
            )


def whole(loss: str, least: int, /, **numbers: float | Tensor) -> None:
    """Refuse Python numbers that are no whole number from `least` on."""
    for name, x in numbers.items():
        if isinstance(x, (int, float)) and (x % 1 or not x >= least):
            raise ValueError(f"{loss}: {name} {x}; a whole number, {least} or more, is expected.")
