"""What one run of a sweep has of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from fkd._base.errors import expect, listing, nearest
from fkd._objective.objective import Objective
from fkd._objective.terms import Knob, Moving, Term, moves
from fkd._refs.refs import Ref
from fkd.schedules import constant


@dataclass(frozen=True, eq=False)
class Member:
    """See `member`, which makes it."""

    knobs: Mapping[str, Knob] = field(default_factory=dict[str, Knob])
    lr: float | Callable[[int], float] = 1.0
    seed: int | None = None
    modules: Mapping[str, nn.Module] = field(default_factory=dict[str, nn.Module])


def member(
    knobs: Mapping[str, Knob] | None = None,
    *,
    lr: float | Callable[[int], float] = 1.0,
    seed: int | None = None,
    modules: Mapping[str, nn.Module] | None = None,
) -> Member:
    """One run of a sweep: what differs from the objective and the optimizer that all share.

    Args:
      knobs: `{"kd/temperature": 4.0, "kd/weight": 0.5}`, numbers, 0-d tensors or schedules; of
        everything else the objective says what it is.
      lr: a factor on the learning rate, or a schedule of one.
      seed: of dropout and all else that is drawn; None: that of `init`.
      modules: other initial parameters, by the model's name.

    Example:
      >>> member({"kd/temperature": 4.0}, lr=0.5).lr
      0.5
    """
    expect("member", "knobs", knobs or {}, Mapping, "{'term/temperature': 2.0}")
    expect("member", "modules", modules or {}, Mapping, "{model: module}")
    return Member(dict(knobs or {}), lr, seed, dict(modules or {}))


def moving(objective: Objective, members: Mapping[str, Member]) -> dict[str, Term]:
    """The terms, in which every knob that any member sets moves, so that all share one graph.

    Raises:
      ValueError: a member sets what is no knob.
    """
    terms = dict(objective.terms)
    for name, one in members.items():
        for key in one.knobs:
            term_name, _, knob = key.rpartition("/")
            if term_name not in terms:
                raise ValueError(
                    f"sweep: member {name!r} sets {key!r}, and there is no term {term_name!r}. "
                    f"{nearest(term_name, terms)}Terms: {listing(terms)}. A knob is written "
                    "'term/temperature' or 'term/weight'."
                )
            terms[term_name] = _moving(terms[term_name], knob, f"member {name!r} sets {key!r}")
    return terms


def _moving(term: Term, knob: str, what: str) -> Term:
    before = term.weight if knob == "weight" else term.kwargs.get(knob, _default(term, knob))
    if isinstance(before, Ref) or before is None:
        raise ValueError(
            f"sweep: {what}, which is {before!r} in the objective; a number or a schedule is "
            "expected there."
        )
    if moves(before):
        return term
    if isinstance(before, bool) or not isinstance(before, int | float | Tensor):
        raise ValueError(f"sweep: {what}, which is {before!r} in the objective and no number.")
    moved = constant(float(before))
    if knob == "weight":
        return replace(term, weight=moved)
    return replace(term, kwargs={**term.kwargs, knob: moved})


def _default(term: Term, knob: str) -> Any:
    try:
        options = inspect.signature(term.loss).parameters
    except (TypeError, ValueError):
        options = {}
    if knob not in options or options[knob].default is inspect.Parameter.empty:
        raise ValueError(
            f"sweep: {term!r} has no option {knob!r}. {nearest(knob, options)}"
            f"Options: {listing(options)}."
        )
    return options[knob].default


def as_moving(knob: Any) -> Moving:
    """A knob as one that may move."""
    return knob if moves(knob) else constant(float(knob))


def own_terms(terms: Mapping[str, Term], one: Member) -> dict[str, Term]:
    """The terms with a member's knobs, which print as what they are."""
    chosen = dict(terms)
    for key, value in one.knobs.items():
        name, _, knob = key.rpartition("/")
        moved = as_moving(value)
        before = chosen[name]
        weight = moved if knob == "weight" else before.weight
        kwargs = before.kwargs if knob == "weight" else {**before.kwargs, knob: moved}
        chosen[name] = replace(before, weight=weight, kwargs=kwargs)
    return chosen
