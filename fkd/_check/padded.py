"""Padding on the left that changes what a model says in the tokens after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from .._base.types import Batch
from .._objective.apply import call_arguments
from .._objective.models import Model
from .._objective.objective import Objective
from .tried import FIELD, another, difference, fields_near, has_ids, models_near, said

_FIELD = "attention_mask"
_POSITIONS = "position_ids"


def moved_by_padding(objective: Objective, batch: Batch) -> Iterator[str]:
    """One note for each model that says something else behind padding than without it.

    It is tried: the model reads the first tokens of a row with the padding before them, where other
    tokens stand, and without it.

    Args:
      objective: what is checked.
      batch: the real one; padding is told by `attention_mask`.
    """
    for _, name, model, near in models_near(objective, batch, _FIELD, _first_tokens):
        if moved := _moved(model, *near):
            yield (
                f"model {name!r}: padding on the left changes what the "
                f"{type(model.module).__name__} says behind it, by {moved:.1%} of its largest "
                f"output, so that it depends on the other rows. {_reason(model, near[0])}"
            )


def _first_tokens(
    batch: Mapping[str, Any], prefix: str
) -> tuple[dict[str, Any], dict[str, Any], int, int] | None:
    """The end of the padding of one row, with tokens in it, and the tokens after it; these alone;
    and how many there are of both. None where no row is padded on the left."""
    mask = batch[prefix + _FIELD]
    if not has_ids(batch, prefix, mask) or mask.is_floating_point():
        return None
    borders = ((mask[:, :-1] == 0) & (mask[:, 1:] != 0)).nonzero()
    if not len(borders):
        return None
    row, last = borders[0].tolist()
    part = fields_near(batch, prefix, row, last + 1)
    tokens, there = part[prefix + FIELD], (part[prefix + _FIELD][0] != 0).long()
    padding = int((1 - there).cumprod(0).sum())
    count = int(there[padding:].cumprod(0).sum())

    def columns(start: int) -> dict[str, Any]:
        cut = slice(start, padding + count)
        return {n: x[:, cut] if x.shape[:2] == tokens.shape else x for n, x in part.items()}

    filled = torch.where(there == 1, tokens, another(tokens))[:, : padding + count]
    return {**columns(0), prefix + FIELD: filled}, columns(padding), padding, count


def _moved(
    model: Model, padded: Mapping[str, Any], alone: Mapping[str, Any], padding: int, count: int
) -> float:
    behind = said(model, padded, padding + count)
    one = said(model, alone, count)
    return difference(model, one, None if behind is None else behind[padding:])


def _reason(model: Model, padded: Mapping[str, Any]) -> str:
    _, kwargs = call_arguments(model, padded)
    if _POSITIONS in kwargs:
        return "It reads the padding, as a recurrence does: pad on the right."
    return (
        "It is given no position_ids: give those that count from the first token (token_batch "
        "makes them); or, if it takes none, pad on the right."
    )
