"""One objective of all members, under names of their own: what logs, checkpoints and evaluations
of a sweep go by."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fkd._base.errors import listing
from fkd._objective.models import Model
from fkd._objective.objective import Objective
from fkd._objective.terms import Term, with_refs
from fkd._refs.derived import AsFunction, Call, Function
from fkd._refs.refs import Capture, Param, Patched, Ref, Root, Run, Tap, node, ref, walk
from fkd._refs.sourced import replaced
from fkd._refs.trees import mapped

from ._member import Member, own_terms


def name_of(member: str, name: str) -> str:
    """The name of a member's model or term in the joint objective."""
    return f"{member}/{name}"


def joint_objective(
    objective: Objective, terms: Mapping[str, Term], members: Mapping[str, Member]
) -> Objective:
    """The terms and models of every member beside each other; frozen models are there once.

    Raises:
      ValueError: a term reads a plain function of the context, which names models by itself.
    """
    shared = {n for n, m in objective.models.items() if m.kind == "frozen"}
    every_term: dict[str, Term] = {}
    models: dict[str, Model] = {n: m for n, m in objective.models.items() if n in shared}
    for index, (member, one) in enumerate(members.items()):
        names = {n: name_of(member, n) for n in objective.models if n not in shared}
        for name, term in own_terms(terms, one).items():
            every_term[name_of(member, name)] = renamed_term(term, names)
        for name, new in names.items():
            model = objective.models[name]
            module = one.modules.get(name, model.module)
            # Each member has tensors of its own; the first one those of the objective.
            fresh = copy.deepcopy(module) if index and module is model.module else module
            of = names.get(model.of, model.of)
            models[new] = replace(model, module=fresh, of=of)
    return Objective(every_term, **models)


def renamed_term(term: Term, names: Mapping[str, str]) -> Term:
    """The term on other models."""
    to = None if term.to is None else tuple(names.get(name, name) for name in term.to)
    return replace(with_refs(term, lambda ref: renamed(ref, names)), to=to)


def renamed(value: Ref, names: Mapping[str, str]) -> Ref:
    """The ref on other models."""
    functions = [part for part in map(node, walk(value)) if isinstance(part, Function)]
    if functions:
        raise ValueError(
            f"sweep: {functions[0]!r} is a plain function of the context, which reads models by "
            f"names that are not those of a sweep ({listing(names.values())}). Write it as a ref: "
            "student.logits, or fkd.call(fn, student.logits)."
        )

    def inside(leaf: Any) -> Any:
        return renamed(leaf, names) if isinstance(leaf, Ref) else leaf

    def swap(one: Ref) -> Ref | None:
        part = node(one)
        if isinstance(part, Root) and part.name in names:
            return ref(names[part.name])
        if isinstance(part, Tap | Capture | Param) and part.root in names:
            return Ref(replace(part, root=names[part.root]))
        if isinstance(part, Patched) and part.root in names:
            outputs = tuple((path, renamed(value, names)) for path, value in part.outputs)
            return Ref(replace(part, root=names[part.root], outputs=outputs))
        if isinstance(part, Run) and part.root in names:
            args, kwargs = mapped(inside, part.args), mapped(inside, part.kwargs)
            return Ref(replace(part, root=names[part.root], args=args, kwargs=kwargs))
        if isinstance(part, AsFunction) and part.name in names:
            return Ref(replace(part, name=names[part.name]))
        if isinstance(part, Call) and part.fn is None and part.name in names:
            args, kwargs = mapped(inside, part.args), mapped(inside, part.kwargs)
            return Ref(replace(part, name=names[part.name], args=args, kwargs=kwargs))
        return None

    return replaced(value, swap)
