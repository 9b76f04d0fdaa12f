"""Refs whose values come with the batch: what a source gives, instead of what a model computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .._base.errors import RefError, listing
from .attached import Attached
from .code import Node, Ref, children, node, walk
from .context import Context
from .trees import mapped

FIELD = "fkd.sources/"
"""How the fields of a batch begin that a source writes. No field of a user's own is called so."""


@dataclass(frozen=True, eq=False, repr=False)
class Sourced(Node):
    """The value of a ref, read from a batch into which a source has written it.

    Attributes:
      of: what the value is of. It is not computed, so it is not a child.
      source: the name of the source.
      key: under which the source writes the value.
      place: where the source has it from, in words. No part of the code: a teacher that is
        served at another address is the same.
    """

    of: Ref
    source: str
    key: str
    place: str = ""

    def __repr__(self) -> str:
        return f"sourced({self.of!r}, {self.source!r})"

    def _fields(self) -> tuple[Any, ...]:
        return (self.of, self.source, self.key)

    @property
    def children(self) -> tuple[Ref, ...]:
        return ()

    @property
    def roots(self) -> frozenset[str]:
        return frozenset(["batch"])

    def compute(self, ctx: Context, *values: Any) -> Any:
        """The value, as the source gave it."""
        batch, name = ctx.values["batch"], FIELD + self.source
        batch = batch.values if isinstance(batch, Attached) else batch
        if not isinstance(batch, Mapping) or name not in batch:
            have = listing(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
            raise RefError(
                f"{self.of!r} is read from the source {self.source!r}, and the batch has nothing "
                f"of it. Wrap the loader: source.attach(loader). The batch has: {have}."
            )
        if self.key not in batch[name]:
            raise RefError(
                f"{self.of!r} is read from the source {self.source!r}, which has given the batch "
                f"{listing(map(str, batch[name]))}. Bind the objective to this source again."
            )
        return batch[name][self.key]


def origins(ref: Ref) -> list[Sourced]:
    """What a ref is computed from that a source gives."""
    return [part for part in map(node, walk(ref)) if isinstance(part, Sourced)]


def original(ref: Ref) -> Ref:
    """The ref as it was before it was bound to a source."""
    return replaced(ref, lambda r: part.of if isinstance(part := node(r), Sourced) else None)


def replaced(ref: Ref, swap: Callable[[Ref], Ref | None]) -> Ref:
    """The ref with the parts of it that `swap` gives another ref for; from the top down.

    Args:
      ref: which stays as it is.
      swap: gives what stands for a ref, or None, and then its parts are looked at.

    Example:
      >>> replaced(student.logits / 2, lambda r: teacher.logits if r == student.logits else None)
      teacher.logits / 2
    """
    other = swap(ref)
    if other is not None:
        return other
    if not children(ref):
        return ref
    part: Any = node(ref)

    def inside(leaf: Any) -> Any:
        return replaced(leaf, swap) if isinstance(leaf, Ref) else leaf

    fields = {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
    changed = {name: mapped(inside, value) for name, value in fields.items()}
    return Ref(dataclasses.replace(part, **changed))
