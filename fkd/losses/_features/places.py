"""Which places of a feature map count: all of a sample's, or those of a mask of places.

A feature map is `[batch, channels, *space]` in every loss: one axis of samples, then the channels,
then any number of axes of space. `where` is `[batch]`, one True or False for every sample, or
`[batch, *space]`, one for every place. A masked map has the value of the map of its other places
alone (`[batch, channels, places]`), wherever the formula takes the places as a set.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from .._shared.checks import covers, per_sample, same_channels, same_shape, same_space
from .._shared.masks import keep

Where: TypeAlias = (
    Bool[Tensor, " batch"]
    | Int[Tensor, " batch"]
    | Bool[Tensor, "batch *space"]
    | Int[Tensor, "batch *space"]
)


class Places(NamedTuple):
    """What a mask says of flattened maps `[batch, channels, places]`.

    Attributes:
      samples: `[batch]` bool, the samples that count, with a mask of places those that have any
        place; all of them if None.
      mask: `[batch, places]` bool; all places of every sample if None.
    """

    samples: Tensor | None
    mask: Tensor | None

    def fill(self, x: Tensor) -> Tensor:
        """`[batch, ..., places]` with 0 where a place does not count."""
        counts = self.samples if self.mask is None else self.mask
        if counts is None:
            return x
        last = 1 if self.mask is None else counts.shape[-1]
        return x.masked_fill(~counts.reshape(-1, *(1,) * (x.ndim - 2), last), 0.0)

    def number(self, x: Tensor) -> Tensor | int:
        """How many places of each sample of `[batch, ..., places]` count, at least 1: one number,
        or of a mask of places, `[batch, ...]` with axes of 1."""
        if self.mask is None:
            return max(x.shape[-1], 1)
        number = self.mask.sum(-1).clamp(min=1).to(x.dtype)
        return number.reshape(-1, *(1,) * (x.ndim - 2))

    def mean(self, x: Tensor) -> Tensor:
        """Mean over the places that count of `[batch, ..., places]`."""
        return (x if self.mask is None else self.fill(x)).sum(-1) / self.number(x)

    def log_softmax(self, x: Tensor) -> Tensor:
        """Over the places that count; the others have probability 0, and a finite logarithm."""
        return F.log_softmax(self._lowest(x), dim=-1)

    def spread(self, x: Tensor) -> Tensor:
        """The softmax over the places that count of `[batch, places]`, times their number."""
        number = self.number(x)
        number = number if isinstance(number, int) else number.unsqueeze(-1)
        return F.softmax(self._lowest(x), dim=-1) * number

    def _lowest(self, x: Tensor) -> Tensor:
        if self.mask is None:
            return x
        excluded = ~self.mask.reshape(-1, *(1,) * (x.ndim - 2), self.mask.shape[-1])
        return x.masked_fill(excluded, torch.finfo(x.dtype).min / 4)

    def keep(self, values: Tensor) -> Tensor:
        """Values `[batch]` of the samples that count, 0 for the others."""
        return keep(values, self.samples)


def placed(loss: str, where: Tensor | None, /, **maps: Tensor) -> tuple[tuple[Tensor, ...], Places]:
    """Maps as `[batch, channels, places]`, filled, and which of their places count.

    The shapes are checked before by the others here; features `[batch, channels]` without space
    have one place.
    """
    places = places_of(loss, where, **maps)
    flat = (x.unsqueeze(-1) if x.ndim == 2 else x.flatten(2) for x in maps.values())
    return tuple(places.fill(x) for x in flat), places


def places_of(loss: str, where: Tensor | None, /, **maps: Tensor) -> Places:
    """What `where` says of the maps, refused unless it is a mask of samples or of their places."""
    if where is None:
        return Places(None, None)
    batch = next(iter(maps.values())).shape[:1]
    if where.shape == batch:
        covers(loss, where, batch)
        return Places(where.bool(), None)
    spaces = {(*batch, *x.shape[2:]) for x in maps.values()}
    if {tuple(where.shape)} != spaces:
        raise ValueError(
            f"{loss}: where has shape {tuple(where.shape)}; {tuple(batch)} is expected, one True "
            f"or False for every sample, {_or_places(spaces, tuple(batch), maps)}"
        )
    covers(loss, where, where.shape)
    mask = where.bool().flatten(1)
    return Places(mask.any(-1), mask)


def _or_places(
    spaces: set[tuple[int, ...]], batch: tuple[int, ...], maps: dict[str, Tensor]
) -> str:
    if len(spaces) > 1:
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in maps.items())
        return f"since the maps differ in space ({shapes}) and can have no common mask of places."
    (space,) = spaces
    return "since there is no space." if space == batch else f"or {space}, one for every place."


def any_maps(
    loss: str, where: Tensor | None, /, **pair: Tensor
) -> tuple[tuple[Tensor, ...], Places]:
    """Two maps that agree in `batch`, flattened and filled; a mask of places needs one space."""
    names = list(pair)
    return placed(loss, where, **dict(zip(names, per_sample(loss, None, **pair), strict=True)))


def space_maps(
    loss: str, where: Tensor | None, /, **pair: Tensor
) -> tuple[tuple[Tensor, ...], Places]:
    """Two maps of one space, checked, flattened and filled; the channels may differ."""
    filled = dict(zip(pair, per_sample(loss, None, **pair), strict=True))
    same_space(loss, **pair)
    return placed(loss, where, **filled)


def equal_maps(
    loss: str, where: Tensor | None, /, **pair: Tensor
) -> tuple[tuple[Tensor, ...], Places]:
    """Two maps of one shape with space, checked, flattened and filled."""
    filled = dict(zip(pair, per_sample(loss, None, **pair), strict=True))
    same_space(loss, **pair)
    same_channels(loss, **pair)
    return placed(loss, where, **filled)


def equal_features(
    loss: str, where: Tensor | None, /, **pair: Tensor
) -> tuple[tuple[Tensor, ...], Places]:
    """Two maps, or features `[batch, channels]`, of one shape, checked, flattened and filled."""
    filled = dict(zip(pair, per_sample(loss, None, **pair), strict=True))
    same_shape(loss, **pair)
    return placed(loss, where, **filled)
