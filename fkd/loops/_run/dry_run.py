"""What a run will use later is tried before its first step."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from fkd._check.metrics import wrong_labels_of_metrics

from .._base.state import State
from .._data.epochs import Epochs
from .._evaluate.evaluate import Collect, Evaluator, Metric
from .._evaluate.score import readable
from .._step.train_step import TrainStep


def try_evaluation(
    step: TrainStep, state: State, dev: Epochs, metrics: Mapping[str, Metric] | None
) -> None:
    """Evaluate the first batch of the dev set, without what `collect` does at the end of it.

    Args:
      step: whose objective is evaluated.
      state: the parameters; not changed.
      dev: the batches. An iterator, which can be used only once, is left alone.
      metrics: of the run.

    Raises:
      ValueError: there is no batch, or it cannot be evaluated.
    """
    if isinstance(dev.loader, Iterator):
        return
    tried: dict[str, Metric] = {}
    for name, metric in (metrics or {}).items():
        tried[name] = metric
        if isinstance(metric, Collect):
            _takes(name, metric)
            tried[name] = replace(metric, fn=_nothing)
    evaluator = Evaluator(readable(step.objective, state), tried, autocast=step.autocast)
    for batch in dev.batches(-1):
        means = {n: term for n, term in evaluator.metrics.terms.items() if n in tried}
        wrong = wrong_labels_of_metrics(step.objective, means, batch, autocast=step.autocast)
        if wrong:
            raise ValueError(f"fit: on the first batch of dev, {'; '.join(wrong)}")
        try:
            evaluator(state, [batch])
        except Exception as error:
            raise ValueError(
                f"fit: the evaluation fails on the first batch of dev, which was tried before the "
                f"first step: {error} Batches of dev need every field that terms and metrics read."
            ) from error
        return
    evaluator(state, [])  # which says so


def _takes(name: str, metric: Collect) -> None:
    """Refuse a function that cannot take as many arguments as there are refs."""
    try:
        signature = inspect.signature(metric.fn)
    except (TypeError, ValueError):  # a builtin
        return
    try:
        signature.bind(*metric.refs)
    except TypeError as error:
        raise ValueError(
            f"fit: metric {name!r} collects {len(metric.refs)} refs, and its function{signature} "
            f"cannot take as many arguments: {error}."
        ) from error


def _nothing(*values: Any) -> float:
    del values
    return 0.0
