"""Evaluation: the terms of an objective, and any metrics, over a whole loader."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from fkd._base.errors import expect, listing, nearest
from fkd._base.mean import Mean
from fkd._base.trees import map_tensors
from fkd._base.types import Batch, Scalars
from fkd._objective.evaluation import BoundTerms
from fkd._objective.frontier import frontier_of, opaque
from fkd._objective.objective import Objective
from fkd._objective.program import Program
from fkd._objective.terms import Term, metric, part_names, with_refs
from fkd._refs.derived import as_ref
from fkd._refs.paths import name_of
from fkd._refs.refs import Context, Ref, output_path, roots
from fkd._refs.sourced import original
from fkd.metrics import agreement, refuse_reserved
from fkd.parallel._shards import cutting_of, has_foreign
from fkd.parallel._world import World

from .._base.compile import options_of
from .._base.state import State
from .._base.waiting import Say, on_standard_error
from .._data.epochs import Loader, epoch_batches
from .._data.loaders import expect_loader
from .fixed import FixedValues
from .merge import Measured, merged_over
from .score import Forward, autocast_of, processes, readable
from .sourced import swap_of
from .stateful import StatefulMetric, over_batches


@dataclass(frozen=True, eq=False)
class Collect:
    """A metric that is not a mean, such as an F1 score: `fn` sees the values of all batches."""

    fn: Callable[..., float | Mapping[str, float]]
    refs: tuple[Ref, ...]


Metric: TypeAlias = Term | Collect | Callable[[Context], Any]
"""`fkd.metric(fn, ref, ...)`, `collect(fn, ref, ...)`, or a function of the context that
returns one value for each example (or a `Mean`)."""


def collect(fn: Callable[..., float | Mapping[str, float]] | StatefulMetric, *refs: Any) -> Collect:
    """A metric of the whole data set.

    Args:
      fn: for each ref it is given the list of that ref's values, one for each batch, on the
        CPU; returns a number, or several by name. Or a metric of torchmetrics (anything with
        `reset`, `update` and `compute`), which is updated with the values of one batch at a time.
      refs: what to keep of each batch.

    Example:
      >>> total = collect(lambda labels: sum(int(y.sum()) for y in labels), batch.labels)
      >>> total.fn([torch.tensor([1, 2]), torch.tensor([3])])
      6
    """
    if not refs:
        raise ValueError("collect: no refs. Say what the metric reads: collect(fn, ref, ...).")
    function = over_batches(fn) if isinstance(fn, StatefulMetric) else fn
    return Collect(function, tuple(map(as_ref, refs)))


class Evaluator:
    """An objective and metrics as `values = evaluator(state, loader)`.

    With `again`, it is called several times with the same batches, and what frozen models say of
    them is computed in the first call and kept, exactly.
    """

    def __init__(
        self,
        objective: Objective,
        metrics: Mapping[str, Metric] | None = None,
        *,
        compile: Mapping[str, Any] | None = None,
        autocast: torch.dtype | None = None,
        again: bool = False,
        say: Say | None = None,
    ) -> None:
        expect("evaluate", "metrics", metrics, (Mapping, type(None)), "{name: metric}")
        metrics = dict(metrics or {})
        refuse_reserved("evaluate", metrics)
        swap = swap_of(objective)
        self.collected = {
            n: replace(m, refs=tuple(map(swap, m.refs)))
            for n, m in metrics.items()
            if isinstance(m, Collect)
        }
        plain = {n: _as_term(n, m) for n, m in metrics.items() if not isinstance(m, Collect)}
        measured = {name: with_refs(term, swap) for name, term in plain.items()}
        if "agreement" not in metrics:
            measured |= _agreements(objective)
        losses = [ref for term in objective.terms.values() for ref in term.refs]
        collected = [ref for c in self.collected.values() for ref in c.refs]
        program = objective.reading(measured, [*losses, *collected])
        fixed = _fixed(program, compile, autocast) if again else None
        if fixed is not None:
            program = program.without(fixed.refs).evaluating()
        self._place, self._autocast = program.plan.place, autocast
        # Looked up here, since a compiler cannot look refs up.
        self._collected = {n: [self._place[r] for r in c.refs] for n, c in self.collected.items()}
        self.losses = BoundTerms(objective.terms, self._place)
        self.metrics = BoundTerms(measured, self._place)
        self._forward = Forward(
            program,
            self._scalars,
            self._read,
            compile=compile,
            autocast=autocast,
            fixed=fixed,
            say=say,
        )

    @property
    def names(self) -> list[str]:
        """What is measured, as far as it is known before; a `collect` may give several names."""
        terms = self.losses.terms.items()
        losses = [f"loss/{name}" for name in self.losses.terms]
        losses += [f"loss/{name}/{part}" for name, term in terms for part in part_names(term)]
        return ["loss/total", *losses, *self.metrics.terms, *self.collected]

    def expect(self, name: str) -> None:
        """Refuse a name that is not measured, as far as that is known before."""
        if name not in self.names and not any(name.startswith(f"{n}/") for n in self.collected):
            raise ValueError(
                f"fit: best={name!r} is not measured. {nearest(name, self.names)}"
                f"Measured: {listing(sorted(self.names))}."
            )

    def __call__(
        self, state: State, loader: Iterable[Batch], world: World | None = None
    ) -> dict[str, float]:
        """The mean of every term (`loss/<name>`), their total, and every metric, by name.

        Args:
          state: the parameters; not changed.
          loader: batches.
          world: the processes among which the batches are dealt out, each whole to one of them;
            None: this one does all.
        """
        cut = cutting_of(state.trainable, state.frozen) is not None
        alike = has_foreign(state.frozen, state.trainable)
        if world is None or alike or (cut and self._forward.fixed is not None):
            world = World()  # what is kept is no forward pass, in which all processes gather
        return merged_over(world, self._measured(state, loader, world), self._summary)

    def _measured(self, state: State, loader: Iterable[Batch], world: World) -> Measured:
        """What this process has measured."""
        measured = Measured({}, {}, {}, {name: [] for name in self.collected}, -1)
        for batch, index in self._forward.dealt(state, loader, world):
            measured = measured._replace(
                losses=_merged(measured.losses, batch.losses),
                metrics=_merged(measured.metrics, batch.metrics),
                weights=batch.weights,  # one that a ref computes is that of the last batch
                last=index,
            )
            for name, values in batch.collected.items():
                kept = map_tensors(lambda x: x.detach().cpu(), values)
                measured.collected[name].append((index, kept))
        return measured

    def _scalars(self, step: int, device: torch.device) -> tuple[Scalars, Scalars]:
        """The knobs of the losses, and those of the metrics."""
        return self.losses.scalars(step, device), self.metrics.scalars(step, device)

    def _read(
        self,
        values: Sequence[Any],
        scalars: tuple[Scalars, Scalars],
        loss_state: Mapping[str, Any],
    ) -> _Batch:
        losses = self.losses.evaluate(values, scalars[0], loss_state, autocast=self._autocast)
        metrics = self.metrics.evaluate(values, scalars[1], {}, autocast=self._autocast)
        collected = {name: [values[i] for i in places] for name, places in self._collected.items()}
        return _Batch(losses.means, metrics.means, losses.weights, collected)

    def _summary(self, measured: Measured) -> dict[str, float]:
        losses, metrics, weights, collected, last = measured
        if last < 0:
            raise ValueError(
                "evaluate: the loader gave no batch. It is empty, or an iterator that can be used "
                "only once: pass a DataLoader, a list, or a function that makes the batches."
            )
        kept = {name: [values for _, values in sorted(rows, key=_place)]
                for name, rows in collected.items()}  # fmt: skip
        means = [*losses.values(), *metrics.values()]
        fetched = iter(torch.stack([m.value.double() for m in means]).tolist())
        values = {name: next(fetched) for name in losses}
        summary = {f"loss/{name}": value for name, value in values.items()}
        summary["loss/total"] = sum(float(w) * values[n] for n, w in weights.items())
        for name in metrics:
            of_mean = getattr(self.metrics.terms[name].loss, "of_mean", None)
            value = next(fetched)
            summary[name] = value if of_mean is None else of_mean(value)
        for name, whole in self.collected.items():
            result = whole.fn(*map(list, zip(*kept[name], strict=True)))
            if isinstance(result, Mapping):
                summary.update({f"{name}/{k}": float(v) for k, v in result.items()})
            else:
                summary[name] = float(result)
        return summary


class _Batch(NamedTuple):
    """What is kept of a batch."""

    losses: dict[str, Mean]
    metrics: dict[str, Mean]
    weights: dict[str, Tensor]
    collected: dict[str, list[Any]]


def _place(row: tuple[int, Any]) -> int:
    return row[0]


def _merged(before: Mapping[str, Mean], new: Mapping[str, Mean]) -> dict[str, Mean]:
    wide = {name: _wide(mean) for name, mean in new.items()}
    return {n: before[n].merge(mean) if n in before else mean for n, mean in wide.items()}


def evaluate(
    objective: Objective,
    state: State,
    loader: Loader,
    *,
    metrics: Mapping[str, Metric] | None = None,
    compile: bool | Mapping[str, Any] = False,
    mesh: DeviceMesh | None = None,
) -> dict[str, float]:
    """Terms and metrics over a whole loader, without gradients, in eval mode.

    Totals and counts are merged over batches and divided once, so that a ragged last batch
    weighs what it should. The state of a bf16 run is evaluated as it was trained.

    Args:
      objective: as trained.
      state: the parameters; not changed.
      loader: batches, as for `fit`.
      metrics: by name: `fkd.metric(fn, ref, ...)` for means, `collect(fn, ref, ...)` for scores
        of the whole set, or a function of the context that returns one value per example.
      compile: as in `train_step`.
      mesh: processes that are all given the whole loader, deal its batches out, and get the same
        values. None: this process evaluates all by itself.

    Returns:
      `{"loss/total": ..., "loss/<term>": ..., "<metric>": ...}`; `"agreement"`, how often
      student and teacher have the same first choice, is there if a term compares logits (of
      several students `"agreement/<student>"`).

    Raises:
      ValueError: the loader gave no batch.
      RankError: another process of the mesh has failed, or does not answer.
    """
    expect("evaluate", "objective", objective, Objective, "an fkd.Objective", "Try step.objective.")
    expect("evaluate", "state", state, State, "a state of a step", "step.init() is one.")
    expect_loader("evaluate", "loader", loader)
    world = processes("evaluate", mesh, state)
    batches = epoch_batches(loader, state.seed, -1)
    evaluator = Evaluator(
        readable(objective, state),
        metrics,
        compile=options_of(compile),
        autocast=autocast_of(objective, state),
        say=on_standard_error if world.rank == 0 else None,
    )
    with world.telling():
        return evaluator(state, batches, world)


def _fixed(
    program: Program, compile: Mapping[str, Any] | None, autocast: torch.dtype | None
) -> FixedValues | None:
    """What of a program depends on frozen models and the batch alone; None if nothing does, or if
    a plain function of the context may read any model, so that all have to run anyway."""
    frozen = {name for name, model in program.models.items() if model.kind == "frozen"}
    refs = [program.plan.refs[i] for i in program.plan.outputs]
    known = () if opaque(refs) else frontier_of(refs, frozen)
    return FixedValues(program, known, compile=compile, autocast=autocast) if known else None


def _as_term(name: str, value: Metric) -> Term:
    stateful = value.loss if isinstance(value, Term) else value
    if isinstance(stateful, StatefulMetric):
        kind = type(stateful).__name__
        raise TypeError(
            f"evaluate: {name!r}: {kind} gathers batches, its value is no mean over them. Say what "
            f"it is given of each: fkd.loops.collect({kind}(...), student.logits, batch.labels)."
        )
    if isinstance(value, Term):
        return value
    if callable(value):
        _takes_the_context(name, value)
        return metric(_as_mean, value)
    raise TypeError(
        f"evaluate: {name!r}: a metric is a {type(value).__name__}; fkd.metric(fn, ref, ...), "
        "fkd.loops.collect(fn, ref, ...) or a function of the context is expected."
    )


def _takes_the_context(name: str, function: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin
        return
    try:
        signature.bind(None)
    except TypeError as error:
        called = name_of(function)
        raise ValueError(
            f"evaluate: metric {name!r} is the function {called}{signature}, which would be given "
            f"the context alone ({error}). Say of what it is: "
            f"fkd.metric({called}, student.logits, batch.labels)."
        ) from None


def _as_mean(values: Any) -> Any:
    return values if isinstance(values, Mean) else torch.as_tensor(values).float()


def _wide(mean: Mean) -> Mean:
    """In float64, where the device has it: float32 cannot count beyond 16.8 million."""
    if mean.total.device.type == "mps":
        return mean
    return Mean(mean.total.double(), mean.count.double())


def _agreements(objective: Objective) -> dict[str, Term]:
    """The comparison of first choices, if a term compares the logits of two models, or the heads
    that would give them; where several students have teachers (in a sweep), one for each."""
    compared = [c for c in map(_comparison, objective.terms.values()) if c is not None]
    by_student: dict[str, Term] = {}
    for comparison in compared:
        trained = [n for n in _models_of(comparison) if _is_trained(objective, n)]
        if len(trained) == 1:
            by_student.setdefault(trained[0], comparison)
    if len(by_student) > 1:
        return {f"agreement/{name}": comparison for name, comparison in by_student.items()}
    return {"agreement": compared[0]} if compared else {}


def _comparison(term: Term) -> Term | None:
    of_heads = getattr(getattr(term.loss, "func", term.loss), "agreement", None)
    teacher = [*term.args[2:3], *(x for n, x in term.kwargs.items() if n == "teacher_hidden")]
    if of_heads is not None and any(isinstance(x, Ref) for x in teacher):
        return metric(of_heads, *term.args, where=term.where, **term.kwargs)
    paths = [output_path(original(ref)) for ref in term.args[:2]]
    names = [p[0] for p in paths if p is not None and p[1][-1:] == ("logits",)]
    if len(names) == 2 and "batch" not in names and names[0] != names[1]:
        return metric(agreement, *term.args[:2], where=term.where)
    return None


def _models_of(term: Term) -> list[str]:
    """The models whose outputs a term reads, also those that a source stands for."""
    named = (roots(original(ref)) or () for ref in term.args)
    return list(dict.fromkeys(n for names in named for n in names if n != "batch"))


def _is_trained(objective: Objective, name: str) -> bool:
    model = objective.models.get(name)
    return model is not None and model.kind == "trainable"
