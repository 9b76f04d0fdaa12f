"""What a model says on a few tokens of the batch, to see what its outputs depend on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .._base.types import Batch
from .._objective.apply import call_arguments
from .._objective.models import Model, skeleton
from .._objective.objective import Objective

Near = TypeVar("Near")

FIELD = "input_ids"
NEAR = 8  # tokens on both sides of a border


def models_near(
    objective: Objective,
    batch: Batch,
    ending: str,
    near: Callable[[Any, str], Near | None],
) -> Iterator[tuple[str, str, Model, Near]]:
    """The models that run on a batch, each with a few tokens of it.

    Args:
      objective: of the models.
      batch: the real one.
      ending: of the names of the fields that tell where in a batch to look.
      near: from the batch and what comes before the ending; None where there is nothing to try.

    Returns:
      The name of the field, name and model, and what `near` gives.
    """
    if not isinstance(batch, Mapping):
        return
    for field in [n for n in batch if str(n).endswith(ending)]:
        tokens = near(batch, field.removesuffix(ending))
        if tokens is not None:
            for name in objective.program.runs:
                yield field, name, objective.program.model(name), tokens


def fields_near(batch: Mapping[str, Any], prefix: str, row: int, border: int) -> dict[str, Any]:
    """The fields of a batch for a few columns of one row, around the first column after a border.

    Args:
      batch: with ids, `[rows, length]`, under `prefix + FIELD`.
      prefix: of the names of the fields of a model.
      row: which.
      border: the first column after it.
    """
    shape, columns = batch[prefix + FIELD].shape, slice(max(border - NEAR, 0), border + NEAR)
    return {
        name: x[row : row + 1, columns] if x.shape[:2] == shape else x[row : row + 1]
        for name, x in batch.items()
        if isinstance(x, Tensor) and x.ndim and len(x) == shape[0]
    }


def has_ids(batch: Mapping[str, Any], prefix: str, like: Any) -> bool:
    """Whether a batch has ids, `[rows, length]`, of the shape of another field."""
    ids = batch.get(prefix + FIELD)
    if not isinstance(ids, Tensor) or not isinstance(like, Tensor) or ids.ndim != 2:
        return False
    return ids.shape == like.shape and not ids.is_floating_point()


def another(tokens: Tensor) -> int:
    """A token that is not the highest of some."""
    highest, lowest = int(tokens.max()), int(tokens.min())
    return lowest if lowest < highest else abs(highest - 1)


@torch.no_grad()
def said(model: Model, fields: Mapping[str, Any], width: int) -> Tensor | None:
    """The first output of a model, in eval mode, that has a value for each of `width` positions.

    Returns:
      `[width, ...]` in float32; None if the model wants the whole batch, or is not here, whole.
    """
    module = model.module
    if module is None or not _is_plain(module.parameters()):
        return None
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    copied = skeleton(module, training=False)
    try:
        args, kwargs = call_arguments(model, {name: x.to(device) for name, x in fields.items()})
        leaves = pytree.tree_leaves(copied(*args, **kwargs))
        return next(x for x in leaves if _is_of_positions(x, width))[0].float()
    except Exception:
        return None


def difference(model: Model, one: Tensor | None, other: Tensor | None) -> float:
    """The largest difference of two outputs, over the largest of the first; 0 if it is rounding,
    or if there is none to compare."""
    if model.module is None or one is None or other is None or one.shape != other.shape:
        return 0.0
    exact = next(model.module.parameters()).dtype is torch.float32
    largest = max(float(one.abs().max()), torch.finfo(torch.float32).tiny)
    different = float((one - other).abs().max()) / largest
    return 0.0 if different <= (1e-5 if exact else 3e-2) else different  # nan is one


def _is_plain(parameters: Iterable[Tensor]) -> bool:
    """Whether parameters are here, whole, and as they are."""
    every = list(parameters)
    return {type(p) for p in every} == {torch.nn.Parameter} and not any(p.is_meta for p in every)


def _is_of_positions(x: Any, width: int) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and x.shape[:2] == (1, width)
