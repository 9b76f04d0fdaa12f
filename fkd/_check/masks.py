"""Masks of the batch that are no masks: integers that are something else than 0 and 1."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .._base.types import Batch
from .._objective.objective import Objective
from .._refs.code import operand
from .._refs.refs import Context
from .labels import read_integers


def masks_with_other_numbers(objective: Objective, batch: Batch) -> Iterator[str]:
    """One message for each term whose mask has other numbers than 0 and 1: classes, or the ids of
    packed documents, would count wherever they are not 0.

    Only masks that lie in the memory of the host are read: a device would have to be waited for.

    Args:
      objective: what is checked.
      batch: the real one, with its values.
    """
    context = Context({"batch": batch})
    for name, term in objective.terms.items():
        mask = None if term.where is None else read_integers(term.where, context)
        if term.where is None or mask is None or mask.dtype is torch.bool:
            continue
        others = mask[(mask != 0) & (mask != 1)]
        if others.numel():
            least, first = int(others.min()), int(others[0])
            compared = f"!= {least}" if least < 0 else "> 0"
            yield (
                f"term {name!r}: where={term.where!r} has the number {first}; 0 and 1 (or bool) "
                f"are expected. Compare it: where={operand(term.where)} {compared}."
            )
