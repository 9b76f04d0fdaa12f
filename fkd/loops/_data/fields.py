"""A batch of any kind as fields, and back: by name, or by place where its parts have no names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from fkd._base.types import Batch
from fkd._refs.attached import Attached, without_values

Field: TypeAlias = str | int
"""What a part of a batch is called: a name, or its place in a tuple or list."""

WHOLE = -1
"""The place of a batch that is one tensor."""


def as_fields(batch: Batch) -> dict[Any, Any]:
    """The parts of a batch: of a dict, a dataclass or a named tuple by name, of a tuple or list by
    place. What sources have given beside them is among them.

    Raises:
      TypeError: it has no parts.

    Example:
      >>> as_fields(["image", "label"])
      {0: 'image', 1: 'label'}
    """
    if isinstance(batch, Attached):
        return {**as_fields(batch.batch), **batch.values}
    if isinstance(batch, Mapping):
        return dict(batch)
    names = _names(batch)
    if names is not None:
        return {name: getattr(batch, name) for name in names}
    if isinstance(batch, tuple | list):
        return dict(enumerate(batch))
    if isinstance(batch, Tensor | np.ndarray):
        return {WHOLE: batch}
    raise TypeError(
        f"a batch is a {type(batch).__name__}; a tensor, or a dict, dataclass, tuple or list of "
        "its parts is expected."
    )


def as_batch(fields: Mapping[Any, Any], like: Batch) -> Any:
    """Fields as a batch of the kind of another one; those that it has not, beside it.

    Example:
      >>> as_batch({0: "image", 1: "label"}, like=("other image", "other label"))
      ('image', 'label')
    """
    like = without_values(like)
    if isinstance(like, Mapping) or dataclasses.is_dataclass(like):
        return dict(fields)
    names = list(as_fields(like))
    parts = [fields.get(name) for name in names]
    rest = {name: x for name, x in fields.items() if name not in names}
    if isinstance(like, Tensor | np.ndarray):
        batch = parts[0]
    elif _names(like) is not None:
        kind: Any = type(like)
        batch = kind(*parts)
    else:
        batch = parts if isinstance(like, list) else tuple(parts)
    return Attached(batch, rest) if rest else batch


def with_fields(batch: Batch, fields: Mapping[str, Any]) -> Any:
    """The batch with further fields: a dict with these, or them beside a batch without names."""
    if isinstance(batch, Attached):
        return batch._replace(values={**batch.values, **fields})
    return as_batch({**as_fields(batch), **fields}, batch)


def _names(batch: object) -> list[str] | None:
    """The names of a record's parts; None: it is no record."""
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return [field.name for field in dataclasses.fields(batch)]
    names: Any = getattr(batch, "_fields", None)
    return list(names) if isinstance(batch, tuple) and names is not None else None
