"""Whether a loss keeps the structure and the shapes of its state."""

from __future__ import annotations

from typing import Any

import optree
from torch import Tensor

from .._objective.terms import Term
from .._refs.paths import describe, name_of


def state_problem(term: Term, before: Any, after: Any) -> str | None:
    """What is wrong with the state that a loss gave back: the next step, a checkpoint and the
    compiled graph expect that of the step before.

    Args:
      term: whose loss has a state.
      before: what the loss was given.
      after: what it returned.
    """
    accessors, olds, structure = optree.tree_flatten_with_accessor(before)
    news, returned = optree.tree_flatten(after)
    if structure != returned:
        return (
            f"{name_of(term.loss)} was given the state {_words(before)}, and returned "
            f"{_words(after)} as the new one; the same structure is expected."
        )
    for accessor, old, new in zip(accessors, olds, news, strict=True):
        if isinstance(old, Tensor) and (not isinstance(new, Tensor) or old.shape != new.shape):
            return (
                f"{name_of(term.loss)} was given {accessor.codify('state')}, {describe(old)}, and "
                f"returned {describe(new)} in its place; a state keeps its shapes from step to "
                "step. A queue has a fixed length: drop its oldest rows."
            )
    return None


def _words(state: Any) -> str:
    return "None" if state is None else describe(state)
