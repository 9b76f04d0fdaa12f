"""What the losses on hidden states, feature maps and relations ask of their inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from .masks import covers, fill, floating


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
        raise ValueError(
            f"{loss}: {a} {tuple(x.shape)} and {b} {tuple(y.shape)} must have the same shape."
            + _adapter_hint(a, x, y)
        )
    covers(loss, where, x.shape[:-1])
    return fill(x, y, where=where)


def _adapter_hint(name: str, x: Tensor, y: Tensor) -> str:
    if x.shape[:-1] != y.shape[:-1] or x.ndim == 0:
        return ""
    return (
        f" Only the last axis differs; map {name} first, for example with "
        f"fkd.trainable(torch.nn.Linear({x.shape[-1]}, {y.shape[-1]}))."
    )


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


def equal_maps(loss: str, where: Tensor | None, /, **pair: Tensor) -> tuple[Tensor, ...]:
    """Two feature maps `[batch, channels, *space]` of one shape, checked and filled."""
    filled = per_sample(loss, where, **pair)
    same_space(loss, **pair)
    same_channels(loss, **pair)
    return filled


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


def norm(x: Tensor) -> Tensor:
    """Euclidean norm of the last axis; at the zero vector the gradient is 0, not nan."""
    return root((x * x).sum(-1))


def root(square: Tensor) -> Tensor:
    """Square root of values >= 0; at 0 the gradient is 0, not inf."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)


def unit(x: Tensor) -> Tensor:
    """`x / |x|` along the last axis; a zero vector stays zero, with a finite gradient."""
    length = norm(x).unsqueeze(-1)
    return x / torch.where(length > 0, length, 1.0)


def huber(x: Tensor, y: Tensor, beta: float | Tensor = 1.0) -> Tensor:
    """Elementwise smooth L1: quadratic up to a difference of `beta`, linear beyond."""
    difference = (x - y).abs()
    return torch.where(
        difference < beta, 0.5 * difference * difference / beta, difference - 0.5 * beta
    )


def counted(where: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """The weight (0 or 1) of every sample, `[batch]`, and how many count, at least 1."""
    weight = like.new_ones(like.shape[0]) if where is None else where.to(like.dtype)
    return weight, weight.sum().clamp(min=1.0)
