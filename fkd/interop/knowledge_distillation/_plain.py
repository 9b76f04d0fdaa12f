"""A step as that package takes it: forward, losses, autograd; nothing traced, nothing compiled.

Whatever Python the user's functions hold works here. `leaves` says what a step depends on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fkd._objective.evaluation import BoundTerms
from fkd._objective.plan import Plan
from fkd._objective.terms import Term
from fkd._refs.refs import Context


class PlainTerms:
    """Terms on outputs that somebody else has computed, eagerly."""

    def __init__(self, terms: Mapping[str, Term]) -> None:
        self._plan = Plan(ref for term in terms.values() for ref in term.refs)
        self._bound = BoundTerms(terms, self._plan.place)

    def total(self, outputs: Mapping[str, Any], batch: Any, step: int = 0) -> Tensor:
        """`[]`, the loss of a batch.

        Args:
          outputs: what each model's adaptor gave, by its name.
          batch: what the refs of the terms read from the batch.
          step: evaluates the schedules.
        """
        values = self._plan.compute(Context({**outputs, "batch": batch}))
        evaluation = self._bound.evaluate(values, self._bound.scalars(step), {})
        return self._bound.total(evaluation)


def leaves(loss: Tensor) -> list[Tensor]:
    """The tensors into which `loss.backward()` would accumulate a gradient."""
    reached: dict[int, Tensor] = {}
    seen: set[Any] = set()
    waiting: list[Any] = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            reached[id(node.variable)] = node.variable
        waiting += [following for following, _ in node.next_functions]
    return list(reached.values())
