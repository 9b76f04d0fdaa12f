"""Several documents in one row, and a model that does not keep them apart: it would learn from the
words of one document how another goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .._base.types import Batch
from .._objective.models import Model
from .._objective.objective import Objective
from .tried import FIELD, another, difference, fields_near, has_ids, models_near, said

_FIELD = "document_ids"


def crossed_documents(objective: Objective, batch: Batch) -> Iterator[str]:
    """One message for each model whose output in a document depends on the one before it.

    It is tried: the model reads a few tokens around a border, twice, with other words before it.

    Args:
      objective: what is checked.
      batch: the real one; rows of documents are told by `document_ids`, of `token_batch`.
    """
    for field, name, model, near in models_near(objective, batch, _FIELD, _around_a_border):
        if _crosses(model, *near):
            yield (
                f"model {name!r}: a row of the batch holds several documents ({field}), and "
                f"the {type(model.module).__name__} does not keep them apart: other words in "
                "one change what it says in the next. Give it a row for each document "
                "(token_batch without pack_documents), or a mask that it reads (inputs=, with "
                f"fkd.loops.language.document_mask); if this is meant, leave {field} out of "
                "the batch."
            )


def _around_a_border(
    batch: Mapping[str, Any], prefix: str
) -> tuple[dict[str, Any], dict[str, Any], Tensor] | None:
    """A few columns of one row; the same with other tokens in the first document; and which
    columns are the second one's. None where no row has two documents."""
    numbers = batch[prefix + _FIELD]
    if not has_ids(batch, prefix, numbers):
        return None
    before, after = numbers[:, :-1], numbers[:, 1:]
    borders = ((before != after) & (before >= 0) & (after >= 0)).nonzero()
    if not len(borders):
        return None
    row, last = borders[0].tolist()
    part = fields_near(batch, prefix, row, last + 1)
    tokens, there = part[prefix + FIELD], part[prefix + _FIELD][0]
    highest = int(tokens.max())
    others = torch.where(tokens == highest, another(tokens), highest)
    other = {prefix + FIELD: torch.where(there == numbers[row, last], others, tokens)}
    return part, {**part, **other}, there == numbers[row, last + 1]


def _crosses(
    model: Model, part: Mapping[str, Any], other: Mapping[str, Any], second: Tensor
) -> bool:
    """Whether what a model says in the second document depends on the first one."""
    outputs = [said(model, fields, len(second)) for fields in (part, other)]
    one, two = (None if x is None else x[second.to(x.device)] for x in outputs)
    return difference(model, one, two) > 0
