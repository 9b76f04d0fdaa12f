"""Refs of metrics whose values come with the batch, as those of the terms do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fkd._objective.objective import Objective
from fkd._objective.terms import Term
from fkd._refs.refs import Ref
from fkd._refs.sourced import origins, replaced

Swap = Callable[[Any], Any]


def swap_of(objective: Objective) -> Swap:
    """The function that gives, for a ref, the same with what the objective's sources have read
    from the batch: of `teacher.logits`, what the terms of an objective that is bound read."""
    refs = [ref for term in objective.terms.values() for ref in term.refs]
    known = {part.of: Ref(part) for ref in refs for part in origins(ref)}
    return lambda x: replaced(x, known.get) if known and isinstance(x, Ref) else x


def swapped(term: Term, swap: Swap) -> Term:
    """The term with other refs."""
    return replace(
        term,
        args=tuple(map(swap, term.args)),
        kwargs={name: swap(x) for name, x in term.kwargs.items()},
        weight=swap(term.weight),
        where=swap(term.where),
    )
