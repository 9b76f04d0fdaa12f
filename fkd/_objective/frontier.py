"""The frontier of an objective: what its frozen models say of a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .._refs.derived import AsFunction, Call, Function
from .._refs.refs import OfModel, Param, Patched, Ref, Root, Run, children, node, roots, walk
from .objective import Objective
from .terms import Term


def frontier(objective: Objective) -> tuple[Ref, ...]:
    """The largest refs that depend on frozen models and the batch alone, and need a forward pass.

    What a teacher has to say, and all of it: with the values of these refs at hand, not one frozen
    model is run on a batch. They stand in the order in which the terms read them. What can be
    computed from others of them without a model is left out (`teacher.logits[:, 1:]` beside
    `teacher.logits`), and so are parameters (`teacher.param(...)`), which are the same for every
    batch. Models that follow the student (`fkd.ema`) and students are not frozen.

    A plain function of the context (`lambda ctx: ...`) may read any model, and nobody can see
    which: it is never part of the frontier, and the frozen models stay for it. Write it as a ref:
    `batch.labels != -100`, `fkd.call(fn, teacher.logits)`.

    Args:
      objective: which is not run. It may have problems (a missing teacher, say): a name that is
        not one of its models is not frozen.

    Returns:
      Refs; empty if no term reads a frozen model's forward pass.

    Example:
      >>> objective = Objective(
      ...     {"kd": term(kl, student.logits, torch.relu(teacher.logits), temperature=2.0)},
      ...     student=trainable(torch.nn.Linear(4, 3)), teacher=frozen(torch.nn.Linear(4, 3)),
      ... )
      >>> fkd.sources.frontier(objective)
      (call(relu, teacher.logits),)
    """
    frozen = {name for name, m in objective.models.items() if getattr(m, "kind", "") == "frozen"}
    return frontier_of(read_refs(objective.terms), frozen)


def frontier_of(refs: Iterable[Ref], frozen: set[str]) -> tuple[Ref, ...]:
    """The same of any refs, with the names of the frozen models."""
    largest: dict[Ref, None] = {}
    for ref in refs:
        largest.update(dict.fromkeys(_largest(ref, frozen)))
    return reduced(largest, frozen)


def reduced(refs: Iterable[Ref], frozen: set[str], *, first: int = 0) -> tuple[Ref, ...]:
    """The refs without those that can be computed from others of them; the first so many stay."""
    every = list(dict.fromkeys(refs))
    rest = (r for r in every[first:] if not _follows(r, set(every) - {r}, frozen))
    return (*every[:first], *rest)


def read_twice(objective: Objective, refs: Iterable[Ref]) -> tuple[Ref, ...]:
    """What is computed both for some refs and beside them: the largest functions of the batch that
    a teacher's inputs and the student read in common."""
    known = set(refs)
    inside = {part for ref in known for part in walk(ref)}
    beside: dict[Ref, None] = {}
    for ref in read_refs(objective.terms):
        _reach(ref, known, beside)
    shared = [
        r for r in beside if r in inside and _computes(node(r)) and roots(r) == frozenset({"batch"})
    ]
    below = {part for ref in shared for child in children(ref) for part in walk(child)}
    return tuple(ref for ref in shared if ref not in below)


def _reach(ref: Ref, known: set[Ref], reached: dict[Ref, None]) -> None:
    """The refs that are computed for one when some are known."""
    if ref in known or ref in reached:
        return
    reached[ref] = None
    for child in children(ref):
        _reach(child, known, reached)


def _computes(part: Any) -> bool:
    """Whether a node calls a function, which may draw random numbers."""
    return isinstance(part, Call) and part.fn is not None


def read_refs(terms: Mapping[str, Term]) -> Iterator[Ref]:
    """What the terms read, in their order."""
    return (ref for term in terms.values() for ref in term.refs)


def opaque(refs: Iterable[Ref]) -> list[Ref]:
    """The plain functions of the context among refs and what they are computed from."""
    parts = (part for ref in refs for part in walk(ref))
    return list(dict.fromkeys(part for part in parts if isinstance(node(part), Function)))


def parts_to_keep(ref: Ref, frozen: set[str]) -> tuple[Ref, ...]:
    """The next smaller refs that have to be known to compute a ref without a forward pass; empty
    if it is itself one of a model."""
    if not children(ref) or _runs_itself(node(ref)):
        return ()  # of a frozen module, which would have to run
    below = (part for child in children(ref) for part in _largest(child, frozen))
    return tuple(dict.fromkeys(below))


def needs_forward(ref: Ref, frozen: set[str]) -> bool:
    """Whether a frozen model runs for a ref."""
    return any(_is_forward(node(part), frozen) for part in walk(ref))


def is_fixed(ref: Ref, frozen: set[str]) -> bool:
    """Whether a ref depends on frozen models and the batch alone."""
    names = roots(ref)
    return names is not None and names <= frozen | {"batch"}


def _largest(ref: Ref, frozen: set[str]) -> Iterator[Ref]:
    if is_fixed(ref, frozen):
        if needs_forward(ref, frozen):
            yield ref
        return
    for child in children(ref):
        yield from _largest(child, frozen)


def named_by(part: Any) -> frozenset[str]:
    """The model that a node itself names, apart from what it is computed from."""
    if isinstance(part, OfModel):
        return frozenset([part.root])
    called = isinstance(part, AsFunction) or (isinstance(part, Call) and part.fn is None)
    named = isinstance(part, Root) or called
    return frozenset([part.name]) if named else frozenset()


def _is_forward(part: Any, frozen: set[str]) -> bool:
    return not isinstance(part, Param) and not named_by(part).isdisjoint(frozen)


def _follows(ref: Ref, known: set[Ref], frozen: set[str]) -> bool:
    """Whether a ref is computed from known ones without a forward pass."""
    if ref in known:
        return True
    if not needs_forward(ref, frozen):
        return True
    part = node(ref)
    if not children(ref) or _runs_itself(part):
        return False
    return all(_follows(child, known, frozen) for child in children(ref))


def _runs_itself(part: Any) -> bool:
    """Whether a node with children runs a model for its own value."""
    return isinstance(part, Patched | Run) or (isinstance(part, Call) and part.fn is None)
