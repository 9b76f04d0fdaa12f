"""Which rows of which tensors of a checkpoint a process holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fkd.parallel._shards import cut_of, rows_of


@dataclass(frozen=True)
class Places:
    """Of which tensors of a checkpoint this process holds rows.

    Attributes:
      likes: the parameter that a tensor is cut like, by the name of the tensor, or of the folder
        of tensors (the moments of an optimizer) in which it is.
    """

    likes: Mapping[str, Tensor]

    def _like(self, name: str, about: Mapping[str, Any]) -> Tensor | None:
        like = self.likes.get(name, self.likes.get(name.rpartition("/")[0]))
        return like if like is not None and list(like.shape) == list(about["shape"]) else None

    def rows(self, name: str, about: Mapping[str, Any]) -> slice | None:
        """Which rows of a tensor this process holds; None: all."""
        like = self._like(name, about)
        return None if like is None else rows_of(like)

    def cut(self, name: str, about: Mapping[str, Any], rows: Tensor) -> Tensor:
        """The tensor of which these are the rows."""
        like = self._like(name, about)
        return rows if like is None else cut_of(rows, like)
