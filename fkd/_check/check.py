"""The dry run: an objective on fake tensors, which have shapes and dtypes but no data.

It costs a fraction of a second and no memory, whatever the size of the models, and finds every
mistake that shows on a batch before anything is compiled or trained.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils.data import DataLoader, Dataset

from .._base.errors import ObjectiveError, RefError, expect, listing
from .._base.mean import Mean
from .._base.trees import map_tensors
from .._base.types import Batch
from .._objective.apply import call_arguments
from .._objective.evaluation import Evaluated, result_problem
from .._objective.models import stand_ins
from .._objective.objective import Objective
from .._objective.problems import first_reader
from .._objective.program import Parts, Pass
from .._objective.terms import Term
from .._refs.attached import without_values
from .._refs.code import operand
from .._refs.derived import Function
from .._refs.paths import describe, name_of
from .._refs.refs import Context, Item, Ref, compute, node, roots
from .axes import axis_problem
from .documents import crossed_documents
from .dtypes import dtypes_hint
from .hints import adapter_hint, asked_hint, inputs_hint, record_hint
from .kernels import Kernels, is_of_dtypes
from .labels import labels_out_of_range
from .masks import masks_with_other_numbers
from .notes import notes
from .rows import row, shape_of
from .shifted import unshifted_labels
from .states import state_problem
from .table import CheckReport, model_lines
from .tokenizers import Tokenizer
from .unreached import unreached
from .vocabularies import compared, expect_names, vocabulary_problems

FAILED = object()
"""Stands for a value that could not be computed; its cause has been reported."""


def check(
    objective: Objective,
    batch: Batch,
    *,
    tokenizers: Mapping[str, Tokenizer] | None = None,
    autocast: torch.dtype | None = None,
) -> CheckReport:
    """Run an objective on the shapes of a batch, without computing anything.

    Args:
      objective: what is to be trained.
      batch: one batch as the data loader yields it. Only masks and labels are read; where a row
        holds several documents, or is padded on the left, each model reads a few tokens, to see
        that it keeps them apart.
      tokenizers: of language models, by the names of the models, as in `{"student": ours,
        "teacher": theirs}`. Whatever differs between them is then in the report, templates too;
        ids that mean other tokens to a model that reads them, or to a term that compares them,
        are mistakes.
      autocast: dtype in which models run their matrix products, if they do in training:
        `torch.bfloat16` for `train_step(precision="bf16")`.

    Returns:
      A `CheckReport`, which prints as a table: for each term its loss, the shapes that go in, its
      weight, and how many positions of this batch count. Below it are notes of what runs and is
      seldom meant: padding that counts, probabilities for logits, a teacher in a student's place.

    Raises:
      ObjectiveError: lists every mistake that was found, each with the term, what was got,
        what is expected, and the names that are available.
      ValueError: `tokenizers` has the name of no model, or something that is no tokenizer.

    Example:
      >>> objective = Objective(
      ...     {"kd": term(kl, student.logits, teacher.logits, temperature=4.0)},
      ...     student=trainable(torch.nn.Linear(4, 3)), teacher=frozen(torch.nn.Linear(4, 3)),
      ... )
      >>> check(objective, torch.randn(2, 4)).rows[0].positions
      '2'
    """
    expect("check", "objective", objective, Objective, "an fkd.Objective")
    _expect_batch(batch)
    objective.raise_problems()
    if not tokenizers:
        return _checked(objective, batch, autocast)
    expect_names(objective, tokenizers)
    reports = compared(objective, tokenizers)
    problems = list(vocabulary_problems(objective, batch, tokenizers, reports))
    try:
        report = _checked(objective, batch, autocast)
    except ObjectiveError as error:
        raise ObjectiveError([*problems, *error.problems]) from None
    if problems:
        raise ObjectiveError(problems)
    lines = (f"tokenizers of {a!r} and {b!r}: {r}" for (a, b), r in reports.items())
    return replace(report, tokenizers=tuple(lines))


def _expect_batch(batch: object) -> None:
    """Refuse what gives batches, and what holds none."""
    if isinstance(batch, Iterator | DataLoader | Dataset):
        first = "next(iter(loader))" if not isinstance(batch, Iterator) else "next(batches)"
        raise TypeError(
            f"check: batch is a {type(batch).__name__}; one batch is expected, as the loader "
            f"yields it: {first}."
        )
    if batch is None or isinstance(batch, str | bytes | int | float):
        raise TypeError(
            f"check: batch is {describe(batch)}; a batch is expected, as the loader yields it: "
            "tensors in a dict, a tuple or a dataclass."
        )


def check_on_values(
    objective: Objective, batch: Batch, *, autocast: torch.dtype | None = None
) -> CheckReport:
    """`check` on the batch itself, at the cost of a forward pass: what kernels refuse is seen."""
    with torch.random.fork_rng(devices=[]):
        return _dry_run(objective, batch, None, autocast)


def _checked(objective: Objective, batch: Batch, autocast: torch.dtype | None) -> CheckReport:
    """The dry run on fake tensors, or on those of the batch where fake ones are not enough."""
    try:
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        return _dry_run(objective, batch, fake, autocast)
    except (DataDependentOutputException, DynamicOutputShapeException, _OnlyFake):
        # The forward pass looks at values, which fake tensors do not have, or an operation knows
        # no fake tensors: run it for real.
        return check_on_values(objective, batch, autocast=autocast)


class _OnlyFake(Exception):
    """A model fails on fake tensors, or a term for their dtypes; it may run all the same."""


@dataclass
class _Trial:
    """What a dry run has found so far."""

    objective: Objective
    batch: Any
    fake: bool
    problems: list[str] = field(default_factory=list[str])
    values: list[Any] = field(default_factory=list[Any])
    failed: set[str] = field(default_factory=set[str])

    def value(self, ref: Ref) -> Any:
        return self.values[self.objective.program.plan.place[ref]]


def _dry_run(
    objective: Objective,
    batch: Batch,
    mode: FakeTensorMode | None,
    autocast: torch.dtype | None,
) -> CheckReport:
    fake = mode.from_tensor if mode else (lambda x: x)
    parts = objective.parts(
        copied=lambda x: fake(x.detach()).detach(),
        shared=lambda x: fake(x.detach()),
        absent=stand_ins(objective.models),
    )
    for leaf in (p for params in parts.trainable.values() for p in params.values()):
        leaf.requires_grad_(leaf.is_floating_point())
    trial = _Trial(objective, map_tensors(fake, batch), fake=mode is not None)
    with _as_on(mode), torch.enable_grad(), _quiet():
        evaluations = _evaluations(trial, parts, autocast)
        if not trial.problems:
            again = functools.partial(_evaluations, trial, parts, autocast)
            runs = map(_means, itertools.chain([evaluations], iter(again, None)))
            trial.problems += unreached(objective, parts, runs)
    if not trial.problems:
        trial.problems += unshifted_labels(objective, batch)
        trial.problems += labels_out_of_range(objective.terms, batch, trial.value)
        trial.problems += crossed_documents(objective, batch)
        trial.problems += masks_with_other_numbers(objective, batch)
    if trial.problems:
        raise ObjectiveError(list(dict.fromkeys(trial.problems)))
    rows = [row(objective, trial.values, n, evaluations[n], batch) for n in objective.terms]
    said = notes(objective, trial.values, evaluations, batch)
    return CheckReport(tuple(rows), tuple(model_lines(objective)), notes=tuple(said))


def _evaluations(
    trial: _Trial, parts: Parts, autocast: torch.dtype | None
) -> dict[str, Evaluated | None]:
    """What each term gives; a run of all models."""
    ctx = _forward(trial, parts, autocast).context
    if trial.failed and trial.fake:
        raise _OnlyFake
    attempt = functools.partial(_attempt, trial)
    trial.values = trial.objective.program.values(ctx, attempt=attempt)
    return {n: _evaluated(trial, n, t, parts) for n, t in trial.objective.terms.items()}


def _may_run(trial: _Trial, error: Exception) -> bool:
    """Whether real tensors may be taken where fake ones failed: an error of torch, not of fkd."""
    return trial.fake and is_of_dtypes(error) and not isinstance(error, ValueError)


def _means(evaluations: Mapping[str, Evaluated | None]) -> dict[str, Mean]:
    return {name: e.mean for name, e in evaluations.items() if e is not None}


@contextlib.contextmanager
def _as_on(mode: FakeTensorMode | None) -> Generator[None, None, None]:
    """Fake tensors, which refuse what real ones do."""
    if mode is None:
        yield
        return
    with mode, Kernels():
        yield


@contextlib.contextmanager
def _quiet() -> Generator[None, None, None]:
    """Without torch's own log of what fails on fake tensors: that is reported here."""
    log, this_thread = logging.getLogger("torch._subclasses.fake_tensor"), threading.get_ident()

    def of_others(record: logging.LogRecord) -> bool:
        return record.thread != this_thread

    log.addFilter(of_others)
    try:
        yield
    finally:
        log.removeFilter(of_others)


def _forward(trial: _Trial, parts: Parts, autocast: torch.dtype | None) -> Pass:
    """A forward pass, with the models left out that fail on this batch."""
    program = trial.objective.program
    forward = program.start(parts, trial.batch, autocast=autocast)
    for name in program.runs:
        try:
            forward.run(name)
        except (DataDependentOutputException, DynamicOutputShapeException):
            raise
        except Exception as error:
            trial.problems.append(_forward_problem(trial, name, error))
            trial.failed.add(name)
    return forward


def _forward_problem(trial: _Trial, name: str, error: Exception) -> str:
    model, batch = trial.objective.program.model(name), without_values(trial.batch)
    try:
        args, kwargs = call_arguments(model, batch)
        received = listing(
            [*map(describe, args), *(f"{k}={describe(v)}" for k, v in kwargs.items())]
        )
    except Exception as adaptor_error:
        return (
            f"model {name!r}: inputs={name_of(model.inputs)} failed on the batch "
            f"({describe(batch)}): {type(adaptor_error).__name__}: {adaptor_error}."
        )
    hint = ""
    if is_of_dtypes(error) and model.module is not None:
        hint = dtypes_hint(model.module, {**{str(i): x for i, x in enumerate(args)}, **kwargs})
    hint = hint or inputs_hint(model, batch, args, kwargs)
    return (
        f"model {name!r}: its forward failed when given {received}; the batch is "
        f"{describe(batch)}. {type(error).__name__}: {_first_line(error).rstrip('.')}.{hint}"
    )


def _attempt(trial: _Trial, ref: Ref, ctx: Context, below: Sequence[Any]) -> Any:
    """The value of a ref, or FAILED, for which the cause has been reported."""
    if any(value is FAILED for value in below):
        return FAILED
    try:
        return compute(ref, ctx, *below)
    except (DataDependentOutputException, DynamicOutputShapeException):
        raise
    except Exception as error:
        if _may_run(trial, error):
            raise _OnlyFake from error
        if not trial.failed & (roots(ref) or frozenset()):
            trial.problems.append(_ref_problem(trial, ref, error, below))
        return FAILED


def _ref_problem(trial: _Trial, ref: Ref, error: Exception, below: Sequence[Any]) -> str:
    where = first_reader(trial.objective.terms, ref)
    named = isinstance(error, ValueError) and isinstance(node(ref), Item)
    if named or isinstance(error, RefError):
        return where + str(error) + asked_hint(trial.objective.models, ref)
    inputs = f" on {', '.join(map(describe, below))}" if below else ""
    hint = ""
    if isinstance(node(ref), Function):
        hint = (
            " ctx['student'] is all that the model returned; a part of it is best read by its "
            "ref, student.logits(ctx)."
        )
    return f"{where}{ref!r} failed{inputs}: {type(error).__name__}: {_first_line(error)}{hint}"


def _evaluated(trial: _Trial, name: str, term: Term, parts: Parts) -> Evaluated | None:
    """What a term gives; None if it fails, which is then a problem."""
    place = trial.objective.program.plan.place
    if any(trial.values[place[ref]] is FAILED for ref in term.refs):
        return None
    args = [trial.values[place[ref]] for ref in term.args]
    problem = (
        _mask_problem(term, trial.values[place[term.where]]) if term.where is not None else None
    )
    problem = problem or _broadcast_problem(term, args) or axis_problem(term, args)
    if problem is None:
        try:
            scalars = trial.objective.scalars(0, _device_of(args))
            evaluate = trial.objective.bound.functions[name]
            state, weight = parts.loss_state.get(name), _weight_by_position(trial, term)
            evaluated = evaluate(trial.values, scalars, state, None, weight)
            problem = result_problem(term, evaluated.result)
            if problem is None and term.state is not None:
                problem = state_problem(term, term.state, evaluated.state)
            if problem is None:
                _ = evaluated.mean  # a mask of another shape than the values is refused here
                return evaluated
        except (DataDependentOutputException, DynamicOutputShapeException):
            raise
        except Exception as error:
            if _may_run(trial, error):
                raise _OnlyFake from error
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            hint = record_hint(term, args) or adapter_hint(term, args)
            problem = f"{kind}{_first_line(error)}"
            problem = f"{problem.rstrip('.')}.{hint}" if hint else problem
    shapes = [f"{r!r} -> {shape_of(a)}" for r, a in zip(term.args, args, strict=True)]
    if term.where is not None:
        shapes.append(f"where={term.where!r} -> {shape_of(trial.values[place[term.where]])}")
    trial.problems.append(f"term {name!r}: {problem}\n  " + "\n  ".join(shapes))
    return None


def _weight_by_position(trial: _Trial, term: Term) -> Tensor | None:
    """The weight of each position, where the weight is a ref to several numbers."""
    if not isinstance(term.weight, Ref):
        return None
    weight = trial.values[trial.objective.program.plan.place[term.weight]]
    return weight if getattr(weight, "ndim", 0) else None


def _mask_problem(term: Term, where: Any) -> str | None:
    if not isinstance(where, Tensor):
        return (
            f"where={term.where!r} is {describe(where)}; a mask is expected, bool or 0/1 integers."
        )
    if where.is_floating_point() or where.is_complex():
        return (
            f"where={term.where!r} has dtype {where.dtype}; bool or 0/1 integers are expected. "
            f"Compare it: where={operand(term.where)} > 0."
        )
    return None


def _broadcast_problem(term: Term, args: Sequence[Any]) -> str | None:
    """A loss of the user's own that would broadcast one input over the other."""
    module = getattr(getattr(term.loss, "func", term.loss), "__module__", "") or ""
    pair = [a for a in args[:2] if isinstance(a, Tensor)]
    if module.startswith("fkd.") or len(pair) < 2 or pair[0].ndim != pair[1].ndim:
        return None
    sizes = list(zip(pair[0].shape, pair[1].shape, strict=True))
    stretched = any(a != b for a, b in sizes) and all(a == b or 1 in (a, b) for a, b in sizes)
    if not stretched:
        return None
    return (
        f"{name_of(term.loss)}: shapes {shape_of(pair[0])} and {shape_of(pair[1])} would be "
        "broadcast. Index, squeeze or expand one of them, so that they agree."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).split("\n")[0]


def _device_of(args: Sequence[Any]) -> torch.device | None:
    return next((a.device for a in args if isinstance(a, Tensor)), None)
