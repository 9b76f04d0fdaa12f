"""Evaluation: the terms of an objective, and any metrics, over a whole loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fkd._errors import listing, nearest
from fkd._mean import Mean
from fkd._objective.objective import Objective
from fkd._objective.terms import Term, metric
from fkd._refs.derived import as_ref
from fkd._refs.refs import Context, Ref, output_path
from fkd._trees import map_tensors
from fkd._types import Batch, Scalars
from fkd.metrics import agreement

from .._data.epochs import Loader, epoch_batches
from .._state import State
from .score import Forward


@dataclass(frozen=True, eq=False)
class Collect:
    """A metric that is no mean, such as an F1 score: `fn` sees the values of all batches."""

    fn: Callable[..., float | Mapping[str, float]]
    refs: tuple[Ref, ...]


Metric: TypeAlias = Term | Collect | Callable[[Context], Any]
"""`fkd.metric(fn, ref, ...)`, `collect(fn, ref, ...)`, or a function of the context that
returns one value for each example (or a `Mean`)."""


def collect(fn: Callable[..., float | Mapping[str, float]], *refs: Any) -> Collect:
    """A metric of the whole data set.

    Args:
      fn: for each ref it is given the list of that ref's values, one for each batch, on the
        CPU; returns a number, or several by name.
      refs: what to keep of each batch.

    Example:
      >>> total = collect(lambda labels: sum(int(y.sum()) for y in labels), batch.labels)
      >>> total.fn([torch.tensor([1, 2]), torch.tensor([3])])
      6
    """
    return Collect(fn, tuple(map(as_ref, refs)))


class Evaluator:
    """An objective and metrics as `values = evaluator(state, loader)`."""

    def __init__(
        self,
        objective: Objective,
        metrics: Mapping[str, Metric] | None = None,
        *,
        compile: Mapping[str, Any] | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        given = dict(metrics or {})
        self.metrics = given
        self.collected = {n: m for n, m in given.items() if isinstance(m, Collect)}
        means = {n: _as_term(m) for n, m in given.items() if not isinstance(m, Collect)}
        self.metric_names = {f"metric/{n}": n for n in means}
        kept = {
            f"collect/{n}/{i}": metric(_nothing, ref)
            for n, m in self.collected.items()
            for i, ref in enumerate(m.refs)
        }
        terms = {**objective.terms, **{f"metric/{n}": t for n, t in means.items()}, **kept}
        if "agreement" not in given:
            compared = _agreement(objective)
            terms |= {} if compared is None else {"metric/agreement": compared}
            self.metric_names["metric/agreement"] = "agreement"
        self.objective = Objective(terms, **objective.models)
        self._forward = Forward(self.objective, self._read, compile=compile, autocast=autocast)

    def expect(self, name: str) -> None:
        """Refuse a name that is not measured, so far as that is known before."""
        losses = [f"loss/{n}" for n in self.objective.terms if not n.startswith("collect/")]
        known = {"loss/total", *losses} - {f"loss/{n}" for n in self.metric_names}
        known |= {*self.metric_names.values(), *self.collected}
        if name not in known and not any(name.startswith(f"{n}/") for n in self.collected):
            raise ValueError(
                f"fit: best={name!r} is not measured. {nearest(name, known)}"
                f"Measured: {listing(sorted(known))}."
            )

    def __call__(self, state: State, loader: Iterable[Batch]) -> dict[str, float]:
        """The mean of every term (`loss/<name>`), their total, and every metric, by name."""
        merged: dict[str, Mean] = {}
        weights: dict[str, Tensor] = {}
        kept: dict[str, list[Any]] = {n: [] for n in self.collected}
        for found, weights, values in self._forward(state, loader):  # noqa: B007  the last ones
            means = {n: _wide(m) for n, m in found.items()}
            merged = {n: merged[n].merge(m) if n in merged else m for n, m in means.items()}
            for name, held in values.items():
                kept[name].append(map_tensors(lambda x: x.detach().cpu(), held))
        if not merged:
            raise ValueError(
                "evaluate: the loader gave no batch. It is empty, or an iterator that can be used "
                "only once: pass a DataLoader, a list, or a function that makes the batches."
            )
        return self._summary(merged, weights, kept)

    def _read(
        self, ctx: Context, scalars: Scalars, loss_state: Mapping[str, Any]
    ) -> tuple[dict[str, Mean], dict[str, Tensor], dict[str, list[Any]]]:
        found = self.objective.evaluate(ctx, scalars, loss_state)
        means = {n: m for n, m in found.means.items() if not n.startswith("collect/")}
        place = self.objective.plan.place
        values = {
            n: [found.values[place[ref]] for ref in c.refs] for n, c in self.collected.items()
        }
        return means, found.weights, values

    def _summary(
        self, merged: Mapping[str, Mean], weights: Mapping[str, Tensor], kept: Mapping[str, Any]
    ) -> dict[str, float]:
        fetched = torch.stack([m.value.double() for m in merged.values()]).tolist()
        values = dict(zip(merged, fetched, strict=True))
        found = {f"loss/{n}": v for n, v in values.items() if n not in self.metric_names}
        # A weight that a ref computes is that of the last batch.
        found["loss/total"] = sum(float(w) * values[n] for n, w in weights.items())
        found.update({self.metric_names[n]: v for n, v in values.items() if n in self.metric_names})
        for name, whole in self.collected.items():
            result = whole.fn(*map(list, zip(*kept[name], strict=True)))
            if isinstance(result, Mapping):
                found.update({f"{name}/{k}": float(v) for k, v in result.items()})
            else:
                found[name] = float(result)
        return found


def evaluate(
    objective: Objective,
    state: State,
    loader: Loader,
    *,
    metrics: Mapping[str, Metric] | None = None,
    compile: bool | Mapping[str, Any] = False,
) -> dict[str, float]:
    """Terms and metrics over a whole loader, without gradients, in eval mode.

    Totals and counts are merged over batches and divided once, so that a ragged last batch
    weighs what it should.

    Args:
      objective: as trained.
      state: the parameters; not changed.
      loader: batches, as for `fit`.
      metrics: by name: `fkd.metric(fn, ref, ...)` for means, `collect(fn, ref, ...)` for scores
        of the whole set, or a function of the context that returns one value per example.
      compile: as in `train_step`.

    Returns:
      `{"loss/total": ..., "loss/<term>": ..., "<metric>": ...}`; `"agreement"`, how often
      student and teacher have the same first choice, is there if a term compares logits.
    """
    options = None if compile is False else {} if compile is True else dict(compile)
    batches = epoch_batches(loader, state.seed, -1)
    return Evaluator(objective, metrics, compile=options)(state, batches)


def _as_term(given: Metric) -> Term:
    if isinstance(given, Term):
        return given
    if callable(given):
        return metric(_as_given, given)
    raise TypeError(
        f"evaluate: a metric is a {type(given).__name__}; fkd.metric(fn, ref, ...), "
        "fkd.loops.collect(fn, ref, ...) or a function of the context is expected."
    )


def _as_given(values: Any) -> Any:
    return values if isinstance(values, Mean) else torch.as_tensor(values).float()


def _wide(mean: Mean) -> Mean:
    """In float64, where the device has it: float32 cannot count beyond 16.8 million."""
    if mean.total.device.type == "mps":
        return mean
    return Mean(mean.total.double(), mean.count.double())


def _nothing(value: Any) -> Mean:
    """Keeps a ref in the plan without reducing it."""
    del value
    return Mean(torch.zeros(()), torch.zeros(()))


def _agreement(objective: Objective) -> Term | None:
    """The comparison of first choices, if a term compares the logits of two models."""
    for term in objective.terms.values():
        paths = [output_path(ref) for ref in term.args[:2]]
        roots = [p[0] for p in paths if p is not None and p[1][-1:] == ("logits",)]
        if len(roots) == 2 and "batch" not in roots and roots[0] != roots[1]:
            return metric(agreement, *term.args[:2], where=term.where)
    return None
