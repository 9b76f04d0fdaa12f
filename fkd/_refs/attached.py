"""A batch without names, and what sources have given beside it."""

from __future__ import annotations

from typing import Any, NamedTuple


class Attached(NamedTuple):
    """A tuple, a list or one tensor as a batch, with the values of sources.

    A dict has one more field for each source. A batch whose parts have no names stays as it is, for
    models, refs, `prepare` and functions of the context, and the values travel beside it.

    Attributes:
      batch: as the loader gave it.
      values: what each source gave, by the name of its field.
    """

    batch: Any
    values: dict[str, Any]


def without_values(batch: Any) -> Any:
    """The batch as the loader gave it.

    Example:
      >>> without_values(Attached((1, 2), {"fkd.sources/a": {"v0": 3}}))
      (1, 2)
    """
    return batch.batch if isinstance(batch, Attached) else batch
