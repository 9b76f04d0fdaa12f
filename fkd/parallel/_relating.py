"""Which terms relate the examples of a batch to each other, so that no part of it will do.

A term that treats every example by itself obeys the split law: the totals and counts of two
halves add up to those of the whole. That is tried, on a few examples and random outputs of the
models, since neither a signature nor a shape says it: a contrastive loss gives one value for each
example, and a ref may take a mean over the batch.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fkd._base.generators import torch_seeded
from fkd._base.mean import Mean
from fkd._base.trees import map_tensors
from fkd._base.types import TensorBatch
from fkd._objective.evaluation import BoundTerms
from fkd._objective.models import stand_ins
from fkd._objective.objective import Objective
from fkd._objective.program import Parts, Program
from fkd._objective.terms import Term
from fkd._refs.derived import Call
from fkd._refs.refs import (
    Capture,
    Context,
    Inside,
    Param,
    Ref,
    Returned,
    Tap,
    children,
    compute,
    node,
    output_path,
    walk,
)

_log = logging.getLogger("fkd")

HALF = 7
"""Examples in each half: a loss of angles needs three, and few tensors have an axis of 14 else."""
MOST = 1 << 29
"""Bytes of random outputs that are tried with."""
ENOUGH = 3
"""Positions that must count in each half, before it says something: with fewer, a loss may have
no pair of examples to relate."""
DRAWS = 4
"""How often other examples are tried, where too few of them count."""
_TOLERANCE = 1e-4


class Relations(NamedTuple):
    """How the terms of an objective depend on the examples of a batch.

    Attributes:
      terms: those that relate the examples to each other.
      by_example: for each value that a term begins with (an output of a model, a field of the
        batch), which of its tensors have the examples as their first axis; a value is missing
        where that is not known.
      called: what adapters give that treat every example by itself.
    """

    terms: frozenset[str]
    by_example: Mapping[Ref, tuple[bool, ...]]
    called: frozenset[Ref] = frozenset()


def relations(objective: Objective, batch: TensorBatch) -> Relations:
    """Which terms and metrics relate the examples of a batch.

    A term with a state is one of them: its state is to follow the whole batch. So is one of which
    too few positions count in any examples that are tried. Where a term cannot be tried (outputs
    of more than 512 MB, say), it is taken for one that does not, unless it gives one value for the
    whole batch.

    Args:
      objective: in its first use.
      batch: examples as they come; a few of them are used.
    """
    stateful = frozenset(name for name, term in objective.terms.items() if term.state is not None)
    try:
        trial = _Trials(objective, batch)
        first = trial(0)
    except Exception as error:  # a model that has no fake forward pass, records of another kind
        _log.warning(
            "which terms relate the examples of a batch could not be tried (%s: %s): only terms "
            "with a state are taken for such",
            *(type(error).__name__, str(error).partition("\n")[0]),
        )
        return Relations(stateful, {})
    others = {name: term for name, term in objective.terms.items() if name not in stateful}
    names = stateful | {name for name, term in others.items() if _relates(trial, name, term)}
    refs = [ref for term in objective.terms.values() for ref in term.refs]
    every = {part for ref in refs for part in walk(ref)}
    called = frozenset(ref for ref in every if _calls(ref) and _by_itself(first, ref))
    leaves = leaves_of(refs, called)
    flags = {leaf: said for leaf in leaves if (said := _flags(first, leaf))}
    return Relations(names, flags, called)


def leaves_of(refs: Iterable[Ref], called: frozenset[Ref] = frozenset()) -> tuple[Ref, ...]:
    """What refs begin with, each once: outputs of models, fields of the batch, parameters, and
    what adapters give that treat every example by itself (`called`)."""
    leaves: dict[Ref, None] = {}

    def visit(ref: Ref) -> None:
        known = ref in called or output_path(ref) is not None
        if known or isinstance(node(ref), Tap | Capture | Param):
            leaves[ref] = None
        else:
            for child in children(ref):
                visit(child)

    for ref in refs:
        visit(ref)
    return tuple(leaves)


def _calls(ref: Ref) -> bool:
    """Whether a ref is what an adapter gives, or a model on other inputs."""
    part = node(ref)
    return isinstance(part, Returned | Inside) or (isinstance(part, Call) and part.fn is None)


class _Trial(NamedTuple):
    """The values of the refs of a program: of a few examples, of the same with other random
    numbers, and of the two halves."""

    program: Program
    scalars: Mapping[str, Tensor]
    context: Context
    whole: Sequence[Any]
    again: Sequence[Any]
    halves: tuple[Sequence[Any], Sequence[Any]]


class _Trials:
    """The trials of an objective, each with other examples of the batch."""

    def __init__(self, objective: Objective, batch: TensorBatch) -> None:
        self._objective, self._batch = objective, batch
        self._program = program = objective.program.evaluating()
        values = stand_ins(objective.models)
        self._parts = program.parts(lambda x: x.detach(), lambda x: x.detach(), values)
        few = self._few(0)
        self._fake = _fake_outputs(program, self._parts, few)
        self._trials: dict[int, _Trial] = {}

    def __call__(self, draw: int) -> _Trial:
        """The trial of a number."""
        if draw not in self._trials:
            self._trials[draw] = self._trial(draw)
        return self._trials[draw]

    def _few(self, draw: int) -> TensorBatch:
        return map_tensors(functools.partial(_few, draw=draw), self._batch)

    def _trial(self, draw: int) -> _Trial:
        program, parts = self._program, self._parts
        outputs, taps = _random_like(*self._fake, seed=draw)
        trees = (tree.values() for tree in parts[:3])
        device = next(x.device for tree in trees for named in tree for x in named.values())
        few = map_tensors(lambda x: x.to(device), self._few(draw))
        modules = program.start(parts, few).context

        def context(part: slice) -> Context:
            def cut(x: Tensor) -> Tensor:
                return x[part] if x.ndim and x.shape[0] == 2 * HALF else x

            values = map_tensors(cut, {**outputs, "batch": few})
            return dataclasses.replace(modules, values=values, taps=map_tensors(cut, taps))

        def values(part: slice, seed: int = 0) -> Sequence[Any]:
            with torch_seeded(seed, device), torch.no_grad():
                return program.plan.compute(context(part), attempt=_attempt)

        every = slice(None)
        halves = values(slice(0, HALF)), values(slice(HALF, 2 * HALF))
        scalars = self._objective.scalars(0, device)
        whole, again = values(every), values(every, seed=1)
        return _Trial(program, scalars, context(every), whole, again, halves)


def _few(x: Tensor, *, draw: int) -> Tensor:
    """As many examples as are tried, drawn from the batch: the halves have others, as far as
    there are two."""
    if not x.ndim:
        return x
    count, generator = x.shape[0], torch.Generator().manual_seed(draw)
    if count >= 2 * HALF:
        chosen = torch.randperm(count, generator=generator)[: 2 * HALF]
    else:
        chosen = torch.randint(max(count, 1), (2 * HALF,), generator=generator)
    few = x[chosen.to(x.device)]
    if count == 1 and x.is_floating_point():
        factors = 0.5 + 0.5 * torch.rand(2 * HALF, generator=generator)
        few = few * factors.to(x.device, x.dtype).view(-1, *[1] * (x.ndim - 1))
    return few


def _fake_outputs(program: Program, parts: Parts, batch: TensorBatch) -> tuple[Any, Any]:
    """What the models would return, as fake tensors: nothing is computed."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode, torch.no_grad():
        fake_parts = Parts(*(map_tensors(mode.from_tensor, tree) for tree in parts))
        forward = program.context(fake_parts, map_tensors(mode.from_tensor, batch))
    context = forward.context
    outputs = {name: context[name] for name in program.runs}
    return outputs, {name: context.taps[name] for name in program.runs}


def _random_like(outputs: Any, taps: Any, *, seed: int) -> tuple[Any, Any]:
    """Random values of the same shapes: positive, with the sum 1 along the last axis, so that
    they can stand for logits, hidden states and probabilities."""
    tensors = tensors_in((outputs, taps))
    if sum(x.numel() * 4 for x in tensors) > MOST:
        raise ValueError("the outputs of a few examples take more than 512 MB")
    generator = torch.Generator().manual_seed(seed)

    def draw(x: Tensor) -> Tensor:
        drawn = torch.randn(x.shape, generator=generator)
        if not x.is_floating_point():
            return (drawn > 0).to(x.device, x.dtype)
        return drawn.softmax(-1).to(x.device, x.dtype) if x.ndim else drawn.to(x.device, x.dtype)

    return map_tensors(draw, outputs), map_tensors(draw, taps)


def _attempt(ref: Ref, ctx: Context, below: Sequence[Any]) -> Any:
    """A value, or None where it cannot be computed; `check` has said why."""
    try:
        return compute(ref, ctx, *below)
    except Exception:
        return None


def _flags(trial: _Trial, leaf: Ref) -> tuple[bool, ...]:
    """Which tensors of a value have the examples as their first axis."""
    tensors = tensors_in(trial.whole[trial.program.plan.place[leaf]])
    return tuple(x.ndim > 0 and x.shape[0] == 2 * HALF for x in tensors)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of a value, in the order in which `map_tensors` visits them."""
    tensors: list[Tensor] = []
    map_tensors(tensors.append, value)
    return tensors


def _by_itself(trial: _Trial, ref: Ref) -> bool:
    """Whether what an adapter gives for an example depends on that example alone: the values of
    the halves are those of the whole."""
    place = trial.program.plan.place[ref]
    flags = _flags(trial, ref)
    every = [tensors_in(values[place]) for values in (trial.whole, *trial.halves)]
    if not flags or not all(flags) or len({len(tensors) for tensors in every}) > 1:
        return False
    whole, *halves = every
    joined = [torch.cat(parts) for parts in zip(*halves, strict=True)]
    return all(
        x.shape == y.shape and torch.allclose(x, y, rtol=1e-3, atol=1e-5, equal_nan=True)
        for x, y in zip(whole, joined, strict=True)
    )


class _Tried(NamedTuple):
    mean: Mean
    weight: Tensor | None
    one_value: bool


def _relates(trials: _Trials, name: str, term: Term) -> bool:
    """Whether the totals of two halves do not add up to that of the whole."""
    for draw in range(DRAWS):
        verdict = _verdict(trials(draw), name, term)
        if verdict is not None:
            return verdict
    return True


def _verdict(trial: _Trial, name: str, term: Term) -> bool | None:
    """Of one trial; None: too few of its positions count to say."""
    tried = functools.partial(_evaluated, trial, name, term)
    try:
        one = tried(trial.whole)
    except Exception:  # which `check` has reported
        return False
    if one.one_value:
        return True
    try:
        again = tried(trial.again, seed=1)
        halves = [tried(half) for half in trial.halves]
    except Exception:  # a half is not enough for it
        return True
    if not _close(one.mean.total, again.mean.total):
        return False  # it draws random numbers, so that nothing can be compared
    total = halves[0].mean.merge(halves[1].mean)
    weights = [half.weight for half in halves]
    adds_up = (
        _close(one.mean.total, total.total)
        and _close(one.mean.count, total.count)
        and all(w is None or one.weight is None or _close(one.weight, w) for w in weights)
    )
    if not adds_up:
        return True
    return False if all(float(half.mean.count) >= ENOUGH for half in halves) else None


def _evaluated(
    trial: _Trial, name: str, term: Term, values: Sequence[Any], seed: int = 0
) -> _Tried:
    bound = BoundTerms({name: term}, trial.program.plan.place)
    device = next((x.device for x in tensors_in(list(values))), torch.device("cpu"))
    with torch_seeded(seed, device), torch.no_grad():
        result = bound.functions[name](values, trial.scalars, None).result
    with torch_seeded(seed, device), torch.no_grad():
        evaluation = bound.evaluate(values, trial.scalars, {})
    one_value = isinstance(result, Tensor) and result.ndim == 0
    return _Tried(evaluation.means[name], evaluation.weights.get(name), one_value)


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether two numbers are equal up to the rounding of a sum. Where one is not finite, nothing
    can be said."""
    x, y = float(a), float(b)
    if not (math.isfinite(x) and math.isfinite(y)):
        return True
    return abs(x - y) <= _TOLERANCE * max(abs(x), abs(y), 1e-6)
