"""Several documents in one row, and a model that does not keep them apart: it would learn from the
words of one document how another goes on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .._base.types import Batch
from .._objective.apply import call_arguments
from .._objective.models import Model, skeleton
from .._objective.objective import Objective

_FIELD = "document_ids"
_NEAR = 8  # tokens on both sides of the border between two documents


def crossed_documents(objective: Objective, batch: Batch) -> Iterator[str]:
    """One message for each model whose output in a document depends on the one before it.

    It is tried: the model reads a few tokens around a border, twice, with other words before it.

    Args:
      objective: what is checked.
      batch: the real one; rows of documents are told by `document_ids`, of `token_batch`.
    """
    if not isinstance(batch, Mapping):
        return
    for field in [n for n in batch if str(n).endswith(_FIELD)]:
        near = _around_a_border(batch, field.removesuffix(_FIELD))
        for name in () if near is None else objective.program.runs:
            model = objective.program.model(name)
            if near is not None and _crosses(model, *near):
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
    ids, numbers = batch.get(prefix + "input_ids"), batch[prefix + _FIELD]
    if not isinstance(ids, Tensor) or not isinstance(numbers, Tensor) or ids.ndim != 2:
        return None
    if ids.shape != numbers.shape or ids.is_floating_point():
        return None
    before, after = numbers[:, :-1], numbers[:, 1:]
    borders = ((before != after) & (before >= 0) & (after >= 0)).nonzero()
    if not len(borders):
        return None
    row, last = borders[0].tolist()
    columns = slice(max(last + 1 - _NEAR, 0), last + 1 + _NEAR)
    part: dict[str, Any] = {
        name: x[row : row + 1, columns] if x.shape[:2] == ids.shape else x[row : row + 1]
        for name, x in batch.items()
        if isinstance(x, Tensor) and x.ndim and len(x) == len(ids)
    }
    there = numbers[row, columns]
    tokens = part[prefix + "input_ids"]
    highest = int(tokens.max())
    lowest = int(tokens.min()) if int(tokens.min()) < highest else abs(highest - 1)
    others = torch.where(tokens == highest, lowest, highest)
    other = {prefix + "input_ids": torch.where(there == numbers[row, last], others, tokens)}
    return part, {**part, **other}, there == numbers[row, last + 1]


@torch.no_grad()
def _crosses(
    model: Model, part: Mapping[str, Any], other: Mapping[str, Any], second: Tensor
) -> bool:
    """Whether what a model says in the second document depends on the first one."""
    module = model.module
    if module is None or not _is_plain(module.parameters()):
        return False
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    copied = skeleton(module, training=False)
    said: list[Tensor] = []
    try:
        for fields in (part, other):
            there = {name: x.to(device) for name, x in fields.items()}
            args, kwargs = call_arguments(model, there)
            leaves = pytree.tree_leaves(copied(*args, **kwargs))
            shaped = [x for x in leaves if _is_of_positions(x, len(second))]
            said.append(shaped[0][0, second.to(device)].float())
    except Exception:  # it wants the whole batch, and is then not tried
        return False
    exact = next(module.parameters()).dtype is torch.float32
    least = (1e-5 if exact else 3e-2) * float(said[0].abs().max())
    return float((said[0] - said[1]).abs().max()) > least


def _is_plain(parameters: Iterable[Tensor]) -> bool:
    """Whether parameters are here, whole, and as they are."""
    every = list(parameters)
    return {type(p) for p in every} == {torch.nn.Parameter} and not any(p.is_meta for p in every)


def _is_of_positions(x: Any, width: int) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and x.shape[:2] == (1, width)
