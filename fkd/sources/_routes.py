"""Which teachers a sample has, and the rows of a batch that are one teacher's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fkd._base.errors import listing, nearest
from fkd._base.types import Batch
from fkd._refs.sourced import FIELD
from fkd.loops._data.fields import Field, as_batch, as_fields

from ._errors import SourceError


def index_of(rows: Any, like: Tensor) -> Tensor:
    """Rows as an index on the device of a tensor."""
    return torch.as_tensor(rows, device=like.device)


def members(chosen: Any, names: Sequence[str], field: Field) -> Any:
    """Which sample has which teachers, `[rows, teachers]` of bool.

    Raises:
      SourceError: it is none of the forms that `routed` takes, or names no teacher.
    """
    if isinstance(chosen, list | tuple) and all(not isinstance(c, int) for c in chosen):
        every = [[c] if isinstance(c, str) else c for c in chosen]
        if all(isinstance(c, list | tuple | set) for c in every):
            return np.stack([_named(c, names, field) for c in every]) if every else \
                   np.zeros((0, len(names)), bool)  # fmt: skip
    array = np.asarray(chosen.detach().cpu() if isinstance(chosen, Tensor) else chosen)
    if array.ndim == 2 and array.shape[1] == len(names) and array.dtype == bool:
        return array
    if array.ndim == 1 and array.dtype.kind in "iu":
        wrong = array[(array < -1) | (array >= len(names))]
        if len(wrong):
            raise SourceError(
                f"routed: batch[{field!r}] has the number {wrong[0]}, and the teachers have 0 to "
                f"{len(names) - 1} (-1: none): {listing(names)}."
            )
        return array[:, None] == np.arange(len(names))
    raise SourceError(
        f"routed: batch[{field!r}] is {array.dtype}{list(array.shape)}. Expected for each sample: "
        f"a name, a list of names, a number (-1: none), or a row of bool for {listing(names)}."
    )


def _named(chosen: Any, names: Sequence[str], field: Field) -> Any:
    for name in chosen:
        if name not in names:
            close = nearest(str(name), names)
            raise SourceError(
                f"routed: batch[{field!r}] names {name!r}. {close}The teachers are "
                f"{listing(names)}."
            )
    return np.asarray([name in chosen for name in names])


def of_rows(batch: Batch, rows: Any, count: int) -> Batch:
    """The batch with some of its rows; what has no row for each sample stays whole."""

    def some(x: Any) -> Any:
        if isinstance(x, Tensor):
            return x[index_of(rows, x)] if x.ndim and x.shape[0] == count else x
        if isinstance(x, np.ndarray):
            return x[rows] if x.ndim and x.shape[0] == count else x
        if isinstance(x, Mapping):
            return {key: some(value) for key, value in x.items()}
        if type(x) in (list, tuple):
            if len(x) == count and not any(isinstance(v, Tensor | np.ndarray) for v in x):
                return type(x)(x[i] for i in rows)
            return type(x)(map(some, x))
        return x

    fields = as_fields(batch).items()
    return as_batch({k: some(v) for k, v in fields if not str(k).startswith(FIELD)}, batch)
