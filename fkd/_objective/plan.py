"""The order in which the values of refs are computed, each distinct one once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from .._refs.refs import Context, Ref, children, compute

Attempt: TypeAlias = Callable[[Ref, Context, Sequence[Any]], Any]
"""`(ref, context, values of its children) -> value`."""


def value_of(ref: Ref, ctx: Context, below: Sequence[Any]) -> Any:
    """The value of a ref from those of its children."""
    return compute(ref, ctx, *below)


Given: TypeAlias = Mapping[Ref, Any] | Mapping[int, Any]
"""Values that are not computed, by ref; or by place, which is what a compiled function has to
take, since a compiler cannot look refs up."""


class Plan:
    """Refs and all that they are computed from, children first; equal refs share one place.

    Args:
      refs: what is asked for.
      known: refs whose values will be given; what only they need has no place.

    Attributes:
      outputs: the places of what is asked for.
      place: of each ref.
      order: each ref with the places of its children.
      known: the places of the refs that have to be given.
    """

    def __init__(self, refs: Iterable[Ref], known: Iterable[Ref] = ()) -> None:
        self.place: dict[Ref, int] = {}
        self.order: list[tuple[Ref, tuple[int, ...]]] = []
        leaves = frozenset(known)
        self.outputs = tuple(self._add(ref, leaves) for ref in refs)
        self.known = frozenset(self.place[ref] for ref in leaves if ref in self.place)

    def _add(self, ref: Ref, known: frozenset[Ref]) -> int:
        if ref not in self.place:
            below = () if ref in known else children(ref)
            places = tuple(self._add(child, known) for child in below)
            self.place[ref] = len(self.order)
            self.order.append((ref, places))
        return self.place[ref]

    @property
    def refs(self) -> list[Ref]:
        """Every distinct ref, children first."""
        return [ref for ref, _ in self.order]

    @property
    def computed(self) -> list[Ref]:
        """The refs whose values are not given."""
        return [ref for i, ref in enumerate(self.refs) if i not in self.known]

    def compute(
        self, ctx: Context, given: Given | None = None, *, attempt: Attempt = value_of
    ) -> list[Any]:
        """The value of every ref, by place.

        Args:
          ctx: what the refs read.
          given: values of some refs, which are not computed again; what only they need is not
            computed either, and has None in its place.
          attempt: how one value is computed.

        Raises:
          ValueError: a value is not given that this plan cannot compute, or one is given for a
            ref that the plan does not have.
        """
        by_place = self._places(given or {})
        needed = self._needed(by_place)
        values: list[Any] = []
        for i, (ref, below) in enumerate(self.order):
            if i in by_place:
                values.append(by_place[i])
            elif i in needed:
                values.append(attempt(ref, ctx, [values[j] for j in below]))
            else:
                values.append(None)
        return values

    def _places(self, given: Given) -> dict[int, Any]:
        by_place: dict[int, Any] = {}
        for key, value in given.items():
            place = key if isinstance(key, int) else self.place.get(key)
            if place is None:
                raise ValueError(f"a value is given for {key!r}, which nothing reads.")
            by_place[place] = value
        missing = [self.order[i][0] for i in sorted(self.known) if i not in by_place]
        if missing:
            raise ValueError(
                f"no value is given for {missing[0]!r}. This program was made by `without`, so "
                f"the value has to come with the call: given={{{missing[0]!r}: value}}."
            )
        return by_place

    def _needed(self, given: Mapping[int, Any]) -> set[int]:
        """The places that the outputs depend on, where nothing below a given value counts."""
        if not given:
            return set(range(len(self.order)))
        needed: set[int] = set()
        waiting = list(self.outputs)
        while waiting:
            i = waiting.pop()
            if i not in needed:
                needed.add(i)
                waiting += () if i in given else self.order[i][1]
        return needed
