"""A step as that package takes it: forward, losses, autograd; nothing traced, nothing compiled.

Whatever Python the user's functions hold works here. `leaves` says what a step depends on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fkd._objective.plan import Plan, bind
from fkd._objective.terms import Term, value_at
from fkd._refs.refs import Context


class PlainTotal:
    """The weighted sum of terms, eagerly.

    Args:
      terms: what `terms_from_config` gives.
    """

    def __init__(self, terms: Mapping[str, Term]) -> None:
        self.terms = terms
        self._plan = Plan(r for t in terms.values() for r in t.refs)
        self._bound = {n: bind(n, t, self._plan.place) for n, t in terms.items()}

    def __call__(self, outputs: Mapping[str, Any], batch: Any, step: int = 0) -> Tensor:
        """The loss of a batch.

        Args:
          outputs: what each model's adaptor gave, by its name.
          batch: what the refs of the terms read from the batch.
          step: evaluates the schedules.
        """
        values = self._plan.compute(Context({**outputs, "batch": batch}))
        parts: list[Tensor] = []
        for name, term in self.terms.items():
            knobs = {
                f"{name}/{k}": torch.as_tensor(value_at(v, step)) for k, v in term.moving.items()
            }
            try:
                found = self._bound[name](values, knobs, None).mean.value
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            weight: Any = knobs.get(f"{name}/weight", term.weight)
            parts.append(weight * found)
        return torch.stack(parts).sum()


def leaves(loss: Tensor) -> list[Tensor]:
    """The tensors into which `loss.backward()` would accumulate a gradient."""
    found: dict[int, Tensor] = {}
    seen: set[Any] = set()
    waiting: list[Any] = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        waiting += [following for following, _ in node.next_functions]
    return list(found.values())
