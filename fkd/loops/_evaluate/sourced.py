"""Refs of metrics whose values come with the batch, as those of the terms do."""

from __future__ import annotations

from collections.abc import Callable

from fkd._objective.objective import Objective
from fkd._refs.refs import Ref
from fkd._refs.sourced import origins, replaced


def swap_of(objective: Objective) -> Callable[[Ref], Ref]:
    """The function that gives, for a ref, the same with what the objective's sources have read
    from the batch: of `teacher.logits`, what the terms of an objective that is bound read."""
    refs = [ref for term in objective.terms.values() for ref in term.refs]
    known = {part.of: Ref(part) for ref in refs for part in origins(ref)}
    return lambda ref: replaced(ref, known.get) if known else ref
