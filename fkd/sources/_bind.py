"""The same objective, with what its teacher says read from the batch."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import optree
import torch
from torch import Tensor, nn

from fkd._base.errors import expect, listing
from fkd._base.sparse import Instead
from fkd._base.types import Batch
from fkd._objective.frontier import named_by, opaque, read_refs
from fkd._objective.models import Model, frozen
from fkd._objective.objective import Objective
from fkd._objective.plan import Plan
from fkd._objective.reads import read_models
from fkd._objective.terms import Term, with_refs
from fkd._refs.refs import Param, Ref, node, roots, walk
from fkd._refs.sourced import Sourced, origins, replaced

from ._errors import SourceError
from ._live import Teacher
from ._parameters import parameters_read, tensors_of
from ._source import Keys, Source


def bind(objective: Objective, source: Source, *, compare: Batch | None = None) -> Objective:
    """The same objective, in which what a source has is read from the batch.

        kept = fkd.sources.cache(objective, loader, "cache")        # the teacher runs once
        cheap = fkd.sources.bind(objective, kept)                   # the same terms without it
        fit(train_step(cheap, optimizer), ..., kept.attach(loader), epochs=10)

    The refs that the source knows are replaced by fields of the batch, wherever terms read them:
    as arguments, options, masks or weights, whole or as a part of other refs. Frozen models that
    nothing reads any more are gone: they are neither run, copied, nor needed in `init()`; drop the
    module itself, and it leaves the memory. Of a frozen model that is read for parameters only
    (`teacher.param("lm_head.weight")`, for a head that is applied beside the student), those
    parameters alone are held.

    (None at all, where what is kept is behind the head: `top_k(64, of=teacher.logits)`.)

    `fkd.check` and `fkd.draw` say which values come from which source. An objective may also be
    written without the teacher, which then exists as a source only; a cache has the parameters
    that the terms read, too.

    Args:
      objective: which stays as it is.
      source: `fkd.sources.open(folder)`, or `fkd.sources.live(objective)`. What it does not have
        stays as it was; bind again for a second source.
      compare: a batch on which what the source gives is compared with what the teacher in the
        objective says now.

    Raises:
      TypeError: the objective is a step, or the source a path.
      SourceError: no term reads what the source has; the source is of another teacher than the
        one in the objective; or the two differ on the batch.

    Warns:
      UserWarning: a plain function of the context is read, which may read any model, so that
        frozen models stay.

    Example:
      >>> objective = Objective(
      ...     {"kd": term(kl, student.logits, teacher.logits, temperature=2.0)},
      ...     student=trainable(torch.nn.Linear(4, 3)), teacher=frozen(torch.nn.Linear(4, 3)),
      ... )
      >>> source = fkd.sources.live(objective)
      >>> cheap = fkd.sources.bind(objective, source)
      >>> list(cheap.models)
      ['student']
    """
    expect("bind", "objective", objective, Objective, "an fkd.Objective", "Try step.objective.")
    if isinstance(source, type) or not callable(getattr(source, "key", None)):
        fix = "Of a folder it is fkd.sources.open(folder)."
        expect("bind", "source", source, Source, "a source of fkd.sources", fix)
    verify = getattr(source, "verify_models", None)
    if verify is not None:
        verify(objective)
    terms = bound_terms(objective.terms, source)
    if all(term is objective.terms[name] for name, term in terms.items()):
        have = listing(getattr(source, "codes", ()))
        of_batch = frozenset(["batch"])
        read = [r for r in dict.fromkeys(read_refs(objective.terms)) if roots(r) != of_batch]
        instead: Any = getattr(source, "instead", None)
        raise SourceError(
            f"bind: no term reads what the source {source.name!r} has: {have}. "
            f"The terms read {listing(map(repr, read))}."
            + ("" if instead is None else instead(read))
        )
    _expect_one_head(source, terms)
    if compare is not None:
        _compare(objective, source, terms, compare)
    return Objective(terms, **_still_read(objective, terms), **_kept(objective, terms, source))


def bound_terms(terms: Mapping[str, Term], source: Keys) -> dict[str, Term]:
    """The terms, with what the source has read from the batch."""
    return {name: _bound(term, source) for name, term in terms.items()}


def _bound(term: Term, source: Keys) -> Term:
    """The term with refs that read the source; itself if it reads nothing that the source has."""

    def swap(ref: Ref) -> Ref | None:
        key = source.key(ref)
        place = getattr(source, "place", "")
        return None if key is None else Ref(Sourced(ref, source.name, key, place))

    bound = with_refs(term, lambda ref: replaced(ref, swap))
    ours = {part for ref in bound.refs for part in origins(ref) if part.source == source.name}
    return _without_superfluous(bound, source) if ours else term


def _without_superfluous(term: Term, source: Keys) -> Term:
    """The term without the teacher's head, where what the source has is behind it."""
    instead: Instead | None = getattr(term.loss, "sparse_instead", None)
    is_sparse = getattr(source, "is_sparse", None)
    if instead is None or is_sparse is None:
        return term
    names = list(inspect.signature(term.loss).parameters)
    known = {**dict(zip(names, term.args, strict=False)), **term.kwargs}
    hidden = known.get(instead.argument)
    read = origins(hidden) if isinstance(hidden, Ref) else []
    if not any(part.source == source.name and is_sparse(part.key) for part in read):
        return term
    first = next((i for i, n in enumerate(names) if n in instead.others), len(names))
    rest = dict(zip(names[first:], term.args[first:], strict=False))
    none = {name: None for name in instead.others if known.get(name) is not None}
    return dataclasses.replace(term, args=term.args[:first], kwargs={**rest, **term.kwargs, **none})


def _expect_one_head(source: Source, terms: Mapping[str, Term]) -> None:
    """Refuse parameters of a teacher that are not those of all teachers of a source."""
    expect_parameters = getattr(source, "expect_parameters", None)
    if expect_parameters is not None:
        replaced_of = {name for ref in read_refs(terms) for part in origins(ref)
                       if part.source == source.name for name in roots(part.of) or ()}  # fmt: skip
        read = parameters_read(read_refs(terms)).items()
        expect_parameters({model: names for model, names in read if model in replaced_of})


def _still_read(objective: Objective, terms: Mapping[str, Term]) -> dict[str, Model]:
    """The models without the frozen ones that nothing reads; those that are read for parameters
    only hold nothing else."""
    refs = list(dict.fromkeys(part for ref in read_refs(terms) for part in walk(ref)))
    read = read_models(Plan(refs), objective.models)
    functions = opaque(refs)
    still = [n for n, m in objective.models.items() if m.kind == "frozen"]
    if functions and still:
        warnings.warn(
            f"bind: {functions[0]!r} is a plain function of the context, which may read any "
            f"model, so {listing(still)} stays and is run. Write it as a ref instead: "
            "batch.labels != -100, or fkd.call(fn, batch.labels).",
            stacklevel=3,
        )
    models: dict[str, Model] = {}
    for name, model in objective.models.items():
        if model.kind != "frozen":
            models[name] = model
        elif name in read:
            uses = [part for part in map(node, refs) if name in named_by(part)]
            wanted = [part.parameter for part in uses if isinstance(part, Param)]
            alone = wanted and len(wanted) == len(uses) and not functions
            models[name] = frozen(Held(tensors_of(model, wanted))) if alone else model
    return models


class Held(nn.Module):
    """Some parameters of a model, under the names that they have there."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            holder: nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if part not in dict(holder.named_children()):
                    holder.add_module(part, nn.Module())
                holder = holder.get_submodule(part)
            holder.register_parameter(last, nn.Parameter(tensor, requires_grad=False))


def _kept(objective: Objective, terms: Mapping[str, Term], source: Source) -> dict[str, Model]:
    """Models that the objective has not, with the parameters that the source has of them."""
    parameters = getattr(source, "parameters", None)
    if parameters is None:
        return {}
    refs = list(dict.fromkeys(part for ref in read_refs(terms) for part in walk(ref)))
    named = {name for part in map(node, refs) if not isinstance(part, Param)
             for name in named_by(part)}  # fmt: skip
    read = {model: names for model, names in parameters_read(refs).items()
            if model not in objective.models and model not in named}  # fmt: skip
    return {model: frozen(Held(parameters(model, names))) for model, names in read.items()}


def _compare(objective: Objective, source: Source, terms: Mapping[str, Term], batch: Batch) -> None:
    """Compare what a source gives for a batch with what the models say.

    Raises:
      SourceError: a value differs by more than the dtype in which it is kept explains.
    """
    parts = {part.key: part.of for ref in read_refs(terms) for part in origins(ref)
             if part.source == source.name}  # fmt: skip
    theirs = source.values(batch)
    ours = dict(zip(parts, Teacher(objective, parts.values())(batch), strict=True))
    like = getattr(source, "like", None)
    ours = ours if like is None else like(batch, ours)
    for key, ref in parts.items():
        pair = optree.tree_leaves(ours[key]), optree.tree_leaves(theirs[key])
        for one, other in zip(*pair, strict=True):
            if tuple(one.shape) != tuple(other.shape):
                raise SourceError(
                    f"bind: {ref!r} is {tuple(other.shape)} in the source {source.name!r}, and "
                    f"{tuple(one.shape)} by the models of the objective."
                )
            off = relative_difference(other, one)
            rounding = getattr(source, "rounding", lambda key: 0.0)(key)
            if not off <= TOLERANCE + rounding:
                raise SourceError(
                    f"bind: {ref!r} differs by {off:.2g} (relative) between the source "
                    f"{source.name!r} and the models of the objective, on the batch to compare. "
                    "The source is of another teacher, of other inputs, or of another precision: "
                    "make it again with this objective."
                )


TOLERANCE = 1e-3
"""How much two values of one teacher may differ, of batches of other sizes and on other devices."""


def relative_difference(one: Tensor, other: Tensor) -> float:
    """The norm of the difference by the norm of the other; entries that are equal (infinities,
    too) do not count."""
    a, b = one.detach().cpu().double(), other.detach().cpu().double()
    different = ~((a == b) | (a.isnan() & b.isnan()))
    if not bool(different.any()):
        return 0.0
    size = torch.where(b.isfinite(), b, 0.0).norm()
    return float((a - b)[different].norm() / size.clamp_min(torch.finfo(torch.float32).tiny))
