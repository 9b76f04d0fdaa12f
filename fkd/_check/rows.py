"""The rows of the table that a check gives: shapes, weights, and how many positions count."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .._base.types import Batch
from .._objective.evaluation import Evaluated, counted_positions, of_values
from .._objective.objective import Objective
from .._objective.plan import Plan
from .._objective.terms import Term
from .._refs.paths import describe, name_of, show
from .._refs.refs import Context, Ref, roots
from .._refs.sourced import origins
from .table import Row


def row(
    objective: Objective,
    values: Sequence[Any],
    name: str,
    evaluated: Evaluated | None,
    batch: Batch,
) -> Row:
    """What a term reads, weighs and counts.

    Args:
      objective: which term.
      values: of its refs, by place; fake ones have shapes.
      name: of the term.
      evaluated: what the term gave.
      batch: the real one.
    """
    assert evaluated is not None
    term = objective.terms[name]
    by_ref = {ref: values[i] for ref, i in objective.program.plan.place.items()}
    students, teachers, others = _sides(objective, term, by_ref)
    return Row(
        term=name,
        loss=name_of(term.loss),
        student=", ".join(students),
        teacher=", ".join(teachers),
        other=", ".join(others),
        weight="metric" if term.weight is None else show(term.weight),
        positions=_positions(objective, term, evaluated, by_ref, batch),
    )


def shape_of(value: Any) -> str:
    """The shape of a tensor; other values in words."""
    return str(tuple(value.shape)) if isinstance(value, Tensor) else describe(value)


def _sides(
    objective: Objective, term: Term, values: Mapping[Ref, Any]
) -> tuple[list[str], list[str], list[str]]:
    """The shapes of the arguments on the student's side, of those that other models or a source
    give, and of what comes from no model. On the student's side is what the loss calls
    `student_...`, else the first argument; and what comes from the student alone.

    What comes from a teacher alone is the teacher's, whatever the loss calls it: a discriminator
    on its features, say.
    """
    named = _named_arguments(term)
    shapes = {n: shape_of(values[ref]) for n, ref in named.items()}
    of = {n: _sides_of(objective, ref) for n, ref in named.items()}
    called = [n for n in shapes if n.startswith("student")] or list(shapes)[:1]
    students = [n for n in called if of[n] != {"teacher"}]
    students = students or [n for n in shapes if "student" in of[n]]
    students += [
        n for n in shapes
        if n not in students and of[n] == {"student"} and not n.startswith("teacher")
    ]  # fmt: skip
    rest = [n for n in shapes if n not in students]
    others = [n for n in rest if not of[n] and roots(named[n]) is not None]
    others = [n for n in others if not origins(named[n])]
    teachers = [n for n in rest if n not in others]
    return [shapes[n] for n in students], [shapes[n] for n in teachers], [shapes[n] for n in others]


def _sides_of(objective: Objective, value: Any) -> set[str]:
    """Whether a value comes from models that are trained, from frozen ones, or from both; adapters
    are neither."""
    below = (roots(value) if isinstance(value, Ref) else None) or frozenset()
    run = below & (objective.models.keys() - objective.program.adapters)
    trained = {n for n in run if n == "student" or objective.models[n].kind == "trainable"}
    return {"student" if n in trained else "teacher" for n in run}


def _named_arguments(term: Term) -> dict[str, Ref]:
    """What a term gives to its loss, by the names that the loss has for it: first the positional
    arguments, then refs that are given for a student, a teacher or labels by name."""
    try:
        names = list(inspect.signature(term.loss).parameters)
    except (TypeError, ValueError):
        names = []
    names += [str(i) for i in range(len(names), len(term.args))]
    sides = ("student", "teacher", "labels")
    by_side = {n: v for n, v in term.kwargs.items() if isinstance(v, Ref) and n.startswith(sides)}
    return {**dict(zip(names, term.args, strict=False)), **by_side}


def _positions(
    objective: Objective,
    term: Term,
    evaluated: Evaluated,
    values: Mapping[Ref, Any],
    batch: Batch,
) -> str:
    """How many positions count; of the real batch, where masks and labels come from it."""
    counted = counted_positions(term.loss)
    whole = isinstance(evaluated.result, Tensor)
    if not whole and counted is None:
        return "own count"
    if whole and evaluated.result.ndim == 0:
        return "whole batch"
    if whole and evaluated.where is None:
        return str(evaluated.result.numel())
    counts = counted_mask(objective, term, evaluated, values, batch)
    if counts is None:
        return "up to the models"  # a mask that a model computes
    return f"{int(counts.sum())} of {counts.numel()}"


def counted_mask(
    objective: Objective,
    term: Term,
    evaluated: Evaluated,
    values: Mapping[Ref, Any],
    batch: Batch,
) -> Tensor | None:
    """The positions of the real batch that count, by the mask of a term and by its loss; None if
    a model computes them.

    Args:
      objective: of the term.
      term: with a mask, or with a loss that counts.
      evaluated: what the term gave.
      values: of its refs, fake or real.
      batch: the real one.
    """
    counted = counted_positions(term.loss)
    plan = Plan(r for r in objective.program.plan.refs if roots(r) == frozenset(["batch"]))
    of_batch = plan.compute(Context({"batch": batch}))
    known = {**values, **{ref: of_batch[i] for ref, i in plan.place.items()}}
    try:
        masks = [] if term.where is None else [_real(known[term.where]).bool()]
        if counted is not None:
            args = [known[ref] for ref in term.args]
            kwargs = {n: known[v] if isinstance(v, Ref) else v for n, v in term.kwargs.items()}
            masks.append(_real(counted(args, kwargs)))
        if isinstance(evaluated.result, Tensor):
            masks = [m for m in (of_values(m, evaluated.result) for m in masks) if m is not None]
            masks = [m.expand(evaluated.result.shape) for m in masks]
        return torch.stack(masks).all(0)
    except Exception:
        return None


def _real(mask: Tensor) -> Tensor:
    """A mask that has values.

    Raises:
      TypeError: it is one of the dry run, which has none.
    """
    if isinstance(mask, FakeTensor):
        raise TypeError("a mask that a model computes")
    return mask
