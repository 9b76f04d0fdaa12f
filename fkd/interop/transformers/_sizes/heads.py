"""The attention heads of a model, wherever its parts say how many there are."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from .._layers import bare, bare_state
from .._sites import applies_rotary

_ATTENTION = re.compile(
    r"^((?:[^.]+\.)*?(?![^.]*(?:norm|bias))[^.]*att[^.]*)\.(.+)$", re.IGNORECASE
)
_SLOPED = ("bloom", "mpt")


class Heads(NamedTuple):
    """The heads of an attention module.

    Attributes:
      queries: how many.
      size: of one.
      rotary: whether queries and keys are rotated by their positions.
    """

    queries: int
    size: int
    rotary: bool


def attention_of(name: str) -> tuple[str, str] | None:
    """The attention module that a parameter is in, and its name there."""
    match = _ATTENTION.match(name.partition("::")[0])
    return None if match is None else (match[1], match[2])


def heads_of(model: nn.Module) -> Callable[[str], Heads | None]:
    """The heads of the attention modules of a model, by bare name; None: not known."""
    modules = {bare(model, name): module for name, module in model.named_modules()}

    @functools.cache
    def heads(name: str) -> Heads | None:
        module = modules.get(name)
        if module is None:
            return None
        inner = list(module.modules())
        owners: list[Any] = [*inner, *(getattr(m, "config", None) for m in inner), _config(model)]
        queries = _number(
            owners, "num_attention_heads", "num_heads", "n_heads", "n_head", "attn_heads"
        )
        size = _number(owners, "head_dim", "attention_head_size", "key_value_proj_dim", "head_size")
        if queries and not size:
            width = _number(owners, "embed_dim", "hidden_size", "all_head_size")
            size = width // queries
        return Heads(queries, size, any(map(_rotates, inner))) if queries and size else None

    return heads


def _config(model: Any) -> Any:
    return getattr(model, "config", None)


def _rotates(module: nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] != "torch" and applies_rotary(module)


def _number(owners: list[Any], *names: str) -> int:
    """The first whole number of one of these names."""
    values = (vars(o).get(n, getattr(type(o), n, None)) if o is not None else None
              for o in owners for n in names)  # fmt: skip
    return next((v for v in values if isinstance(v, int) and not isinstance(v, bool)), 0)


def refuse_heads(caller: str, ours: nn.Module, theirs: nn.Module) -> None:
    """Raise where the heads of ours cannot be some of theirs, or copies of them.

    Raises:
      ValueError: larger heads; smaller ones that positions rotate; another number of them where
        each has a slope of its own.
    """
    of_ours, of_theirs = heads_of(ours), heads_of(theirs)
    config: Any = getattr(ours, "config", None)
    sloped = getattr(config, "alibi", False) or getattr(config, "model_type", "") in _SLOPED
    inside = (attention_of(name) for name in bare_state(ours))
    for name in dict.fromkeys(place[0] for place in inside if place is not None):
        mine, source = of_ours(name), of_theirs(name)
        if mine is None or source is None or mine == source:
            continue
        said = f"{caller}: {name} has {mine.queries} heads of size {mine.size}"
        larger = mine.size > source.size or (caller == "grow" and mine.size != source.size)
        if larger or (source.rotary and mine.size != source.size):
            why = "" if larger else " Positions rotate all of a head together."
            raise ValueError(
                f"{said}, in the other model {source.queries} of size {source.size}; heads of one "
                f"size are expected, and more or fewer of them.{why} Set head_dim, or the number "
                "of heads to the hidden size divided by that size."
            )
        if sloped and mine.queries != source.queries:
            raise ValueError(
                f"{said}, in the other model {source.queries}; each has a slope (ALiBi) that "
                "depends on how many there are. Give both models the same heads."
            )
