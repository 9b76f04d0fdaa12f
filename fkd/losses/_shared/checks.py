"""What losses ask of their inputs: each refusal names the loss, the argument and the fix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from ..._base.sparse import SparseDistribution
from .masks import fill


def paired(loss: str, where: Tensor | None, /, **pair: Tensor) -> tuple[Tensor, ...]:
    """Two tensors of one shape `[*batch, features]`, checked and filled.

    Args:
      loss: the name that starts every message.
      where: `[*batch]` or None.
      pair: the student's tensor and the teacher's.
    """
    floating(loss, **pair)
    (a, x), (b, y) = pair.items()
    if x.shape != y.shape:
        error = ValueError(
            f"{loss}: {a} {tuple(x.shape)} and {b} {tuple(y.shape)} must have the same shape."
        )
        if x.ndim and x.shape[:-1] == y.shape[:-1]:  # `check` says it in terms of the objective
            error.add_note(
                f"Only the last axis differs; map {a} first, for example with "
                f"torch.nn.Linear({x.shape[-1]}, {y.shape[-1]})."
            )
        raise error
    covers(loss, where, x.shape[:-1])
    return fill(x, y, where=where)


def per_sample(loss: str, where: Tensor | None, /, **pair: Tensor) -> tuple[Tensor, ...]:
    """Two tensors `[batch, ...]` that agree in `batch` alone, checked and filled.

    Args:
      loss: the name that starts every message.
      where: `[batch]` or None.
      pair: the student's tensor and the teacher's.
    """
    floating(loss, **pair)
    (a, x), (b, y) = pair.items()
    if x.ndim < 2 or y.ndim < 2 or x.shape[0] != y.shape[0]:
        raise ValueError(
            f"{loss}: {a} {tuple(x.shape)} and {b} {tuple(y.shape)} must both be [batch, ...] "
            "with the same batch size."
        )
    covers(loss, where, x.shape[:1])
    return fill(x, y, where=where)


def equal_samples(loss: str, where: Tensor | None, /, **pair: Tensor) -> tuple[Tensor, ...]:
    """Two tensors `[batch, ...]` of one shape, checked, filled and flattened."""
    filled = per_sample(loss, where, **pair)
    (a, x), (b, y) = pair.items()
    if x.shape != y.shape:
        raise ValueError(
            f"{loss}: {a} {tuple(x.shape)} and {b} {tuple(y.shape)} must have the same shape."
        )
    return tuple(x.flatten(1) for x in filled)


def same_space(loss: str, **pair: Tensor) -> None:
    """Refuse two feature maps `[batch, channels, *space]` that differ in space."""
    (a, x), (b, y) = pair.items()
    if x.ndim < 3 or x.shape[2:] != y.shape[2:]:
        raise ValueError(
            f"{loss}: {a} {tuple(x.shape)} and {b} {tuple(y.shape)} must be feature maps "
            "[batch, channels, *space] of the same space. Pool the larger one first, for "
            "example with torch.nn.functional.adaptive_avg_pool2d."
        )


def maps(loss: str, /, **feature_maps: Tensor) -> None:
    """Refuse what is no feature map `[batch, channels, *space]` with space."""
    for name, x in feature_maps.items():
        if x.ndim < 3:
            raise ValueError(
                f"{loss}: {name} {tuple(x.shape)} has {x.ndim} axes; a feature map [batch, "
                "channels, *space] with 3 or more is expected. Give features without space an "
                "axis of one place first, x[..., None]."
            )


def same_channels(loss: str, **pair: Tensor) -> None:
    """Refuse two feature maps `[batch, channels, *space]` that differ in channels."""
    (a, x), (b, y) = pair.items()
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{loss}: {a} {tuple(x.shape)} and {b} {tuple(y.shape)} must have the same number "
            f"of channels. Map {a} first, for example with "
            f"fkd.trainable(torch.nn.Conv2d({x.shape[1]}, {y.shape[1]}, 1))."
        )


def one_of(loss: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a keyword that is none of the choices."""
    if value not in choices:
        raise ValueError(f"{loss}: {name} is {value!r}; one of {choices} is expected.")


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
    is_tensor(loss, name, where)
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
    refuse_sparse(loss, b, y)
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
        refuse_sparse(loss, name, x)
    for name, x in tensors.items():
        if x.ndim < least or (x.ndim > least and least == len(words)):
            more = "" if least == len(words) else " or more"
            raise ValueError(
                f"{loss}: {name} {tuple(x.shape)} has {x.ndim} axes; {least}{more} are expected, "
                f"[{', '.join(words)}]. Reshape it first."
            )


def classes_last(loss: str, where: Tensor | None, /, **logits: Tensor) -> None:
    """Refuse maps of logits `[batch, classes, *space]`, as far as their shapes show it.

    They do where a mask covers the batch and the space; and without a mask where the last two axes
    or more are equal and the one before them is not, as of a square picture.
    """
    if where is not None:
        is_tensor(loss, "where", where)
    for name, x in logits.items():
        masked = where is not None and fits_classes_first(x, where.shape)
        if where is not None and where.shape == x.shape[:-1]:
            continue  # which says which axes are the positions
        square = x.ndim > 3 and x.shape[1] != x.shape[2] and len(set(x.shape[2:])) == 1
        if masked or (square and x.shape[-1] > 1):
            raise ValueError(
                f"{loss}: {name} {tuple(x.shape)} looks like a map [batch, classes, *space]; "
                f"{CLASSES_LAST}. If its classes are last, flatten the positions: "
                "x.flatten(0, -2)."
            )


CLASSES_LAST = (
    "the classes are expected last, [batch, *space, classes]. Move them: "
    "fkd.call(torch.movedim, x, 1, -1)"
)


def fits_classes_first(logits: Tensor, positions: tuple[int, ...]) -> bool:
    """Whether positions are those of a map `[batch, classes, *space]`, and of no other reading."""
    shape = tuple(logits.shape)
    return len(shape) > 2 and shape[:1] + shape[2:] == tuple(positions) != shape[:-1]


def floating(loss: str, **tensors: Tensor) -> None:
    """Refuse integer tensors, single numbers, and what is known on some classes only, where logits
    or hidden states are meant."""
    for name, x in tensors.items():
        refuse_sparse(loss, name, x)
        is_tensor(loss, name, x)
        if x.ndim == 0:
            raise ValueError(
                f"{loss}: {name} () has no axes; a last axis for the classes or the features is "
                "expected. Was one entry taken too many?"
            )
        if not x.is_floating_point():
            raise ValueError(
                f"{loss}: {name} has dtype {x.dtype}; floating point is expected. "
                "Were labels or token ids passed instead of logits?"
            )


def is_tensor(loss: str, name: str, x: object) -> None:
    """Refuse what is no dense tensor: an array, a list, the whole output of a model."""
    if isinstance(x, Tensor):
        if x.layout != torch.strided:
            raise TypeError(f"{loss}: {name} has layout {x.layout}; call to_dense() on it first.")
        return
    if hasattr(x, "__torch_function__"):  # a ref, which says for itself how it is written
        return
    inside = "logits" if (isinstance(x, dict) and "logits" in x) or hasattr(x, "logits") else ""
    fix = f"Pass its {inside}." if inside else "torch.as_tensor(...) makes one."
    fix = "" if x is None else fix
    what = "None" if x is None else f"a {type(x).__name__}"
    raise TypeError(f"{loss}: {name} is {what}; a tensor is expected. {fix}".rstrip())


def refuse_sparse(loss: str, name: str, x: object) -> None:
    """Refuse a teacher that is known on some classes, where all are needed."""
    if isinstance(x, SparseDistribution):
        raise ValueError(
            f"{loss}: {name} is known on {x.known} of {x.vocab} classes, and {loss} needs all of "
            "them. Keep the teacher whole (fkd.sources.exact()), or use a loss that takes it: kl, "
            "soft_cross_entropy or head_divergence."
        )


def positive(loss: str, **numbers: float | Tensor | None) -> None:
    """Refuse temperatures and bounds of 0 or less, as far as it shows without a device: tensors
    are taken as they are."""
    arguments: dict[str, Any] = dict(numbers)
    for name, x in arguments.items():
        if not (
            x is None or isinstance(x, (int, float, Tensor)) or hasattr(x, "__torch_function__")
        ):
            raise TypeError(
                f"{loss}: {name} is a {type(x).__name__} ({x!r:.40}); a number above 0, or a "
                "tensor of them, is expected."
            )
        if isinstance(x, (int, float)) and not x > 0:
            raise ValueError(f"{loss}: {name} {x}; a number above 0 is expected.")


HOT = 250.0
"""From this temperature on, the difference of two log softmaxes in float32 has few digits left."""


def hot_number(temperature: float | Tensor) -> float | Tensor:
    """A temperature in a tensor as a number, where it is above `HOT` and can be read at once."""
    if torch.compiler.is_compiling() or type(temperature) is not Tensor or temperature.ndim:
        return temperature
    if (
        is_functorch_wrapped_tensor(temperature)
        or temperature.device.type != "cpu"
        or temperature.requires_grad
    ):
        return temperature
    value = temperature.item()
    return value if value > HOT else temperature


def temperature_fits(loss: str, temperature: float | Tensor, dtype: torch.dtype | None) -> None:
    """Refuse a temperature of 0 or less, and one at which a divergence times T^2 is what rounding
    has left, as far as it shows without a device.

    Args:
      loss: the name that starts every message.
      temperature: T.
      dtype: in which it is computed; None: with all digits, up to the range of float32.
    """
    positive(loss, temperature=temperature)
    temperature = hot_number(temperature)
    if not isinstance(temperature, (int, float)):
        return
    most = 1e12 if dtype is None else 1e6 if dtype == torch.float64 else HOT
    if not temperature <= most:
        limit = "" if dtype is None else f" in {str(dtype).removeprefix('torch.')}"
        raise ValueError(
            f"{loss}: temperature {temperature:g}; at most {most:g} is expected{limit}: beyond, "
            "T^2 times a divergence is what rounding has left of it. As T grows, kl becomes half "
            "of logit_mse(..., center=True): use that."
        )


def one_a_position(loss: str, temperature: float | Tensor, logits: Tensor) -> None:
    """Refuse a tensor of temperatures that are not one a position of the logits."""
    if not isinstance(temperature, Tensor) or temperature.ndim == 0:
        return
    expected = (*logits.shape[:-1], 1)
    pairs = zip(reversed(temperature.shape), reversed(expected), strict=False)
    if temperature.ndim > logits.ndim or any(a not in (1, b) for a, b in pairs):
        raise ValueError(
            f"{loss}: temperature {tuple(temperature.shape)}; a number is expected, or one for "
            f"each position of logits {tuple(logits.shape)}: {expected}. Did you forget "
            "temperature[..., None]?"
        )


def softenable(
    loss: str,
    where: Tensor | None,
    student_logits: Tensor,
    temperature: float | Tensor,
    *,
    times_square: bool = True,
) -> None:
    """Refuse a temperature, a layout or a mask that does not fit the student's logits, where the
    teacher comes in another form than logits of the same shape.

    Args:
      loss: the name that starts every message.
      where: `[*batch]` or None.
      student_logits: `[*batch, vocab]`.
      temperature: T.
      times_square: the loss is multiplied by T^2, which limits T.
    """
    if times_square:
        temperature_fits(loss, temperature, student_logits.dtype)
    positive(loss, temperature=temperature)
    classes_last(loss, where, student_logits=student_logits)
    covers(loss, where, student_logits.shape[:-1])


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
    """Refuse Python numbers that are not a whole number from `least` on, and what is a promise
    of a tensor (a ref)."""
    for name, x in numbers.items():
        if not isinstance(x, Tensor) and hasattr(x, "__torch_function__"):
            raise TypeError(
                f"{loss}: {name} is {x!r}, which has a value only inside of a step; a number is "
                f"expected. If it has to be computed there: fkd.call({loss}, ...)."
            )
        if isinstance(x, (int, float)) and (x % 1 or not x >= least):
            raise ValueError(f"{loss}: {name} {x}; a whole number, {least} or more, is expected.")
