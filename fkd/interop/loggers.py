"""Where a run's values go: loggers for `fkd.loops.fit(loggers=[...])`.

A logger is any function of a step and of numbers by name, `logger(step, {name: value})`. At log
points the names are `loss/<term>`, `grad_norm`, `lr` and the like; after evaluations they begin
with `eval/`. Each of these is called from `fit`, never from a worker or a compiled function.
`fit(log_dir=...)` writes JSON lines and TensorBoard events of its own, and knows how to cut them
when a run resumes; these are for other places.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

Logger: TypeAlias = Callable[[int, Mapping[str, float]], object]
"""`logger(step, {name: value})`."""


@runtime_checkable
class HasLog(Protocol):
    """What a run of wandb and the module trackio can do."""

    def log(self, data: dict[str, Any], /, *, step: int | None = None) -> Any:
        """Log values by name at a step."""
        ...


@runtime_checkable
class HasLogMetrics(Protocol):
    """What the module mlflow can do."""

    def log_metrics(self, metrics: dict[str, float], /, *, step: int | None = None) -> Any:
        """Log values by name at a step."""
        ...


@runtime_checkable
class HasAddScalar(Protocol):
    """What a `SummaryWriter` of TensorBoard can do."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int, /) -> Any:
        """Log one value at a step."""
        ...


def json_lines(path: str | os.PathLike[str]) -> Logger:
    """Appends one JSON object a call: `{"step": 10, "loss/total": 0.5}`.

    Args:
      path: of the file; its folder is made. What is there stays. Numbers that JSON does not have
        are the strings "nan", "inf" and "-inf".

    Example:
      >>> import tempfile, pathlib
      >>> path = pathlib.Path(tempfile.mkdtemp(), "values.jsonl")
      >>> json_lines(path)(10, {"loss/total": 0.5})
      >>> path.read_text()
      '{"step": 10, "loss/total": 0.5}\\n'
    """
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)

    def log(step: int, values: Mapping[str, float]) -> None:
        finite = {n: v if math.isfinite(v) else str(v) for n, v in values.items()}
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps({"step": step, **finite}) + "\n")

    return log


def tensorboard(writer: HasAddScalar) -> Logger:
    """Scalars of TensorBoard, in a writer of your own.

    Args:
      writer: a `torch.utils.tensorboard.SummaryWriter`; you close it.

    Example:
      >>> class Writer:
      ...     def add_scalar(self, tag, scalar_value, global_step):
      ...         print(tag, scalar_value, global_step)
      >>> tensorboard(Writer())(10, {"loss/total": 0.5})
      loss/total 0.5 10
    """

    def log(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return log


def wandb(run: HasLog) -> Logger:
    """Weights & Biases; trackio as well, which has the same interface.

    Args:
      run: what `wandb.init(...)` gives; or the module `trackio`, after `trackio.init(...)`.

    Example:
      >>> class Run:
      ...     def log(self, data, *, step=None):
      ...         print(step, data)
      >>> wandb(Run())(10, {"loss/total": 0.5})
      10 {'loss/total': 0.5}
    """
    return lambda step, values: run.log(dict(values), step=step)


def trackio(run: HasLog) -> Logger:
    """Trackio: the module itself after `trackio.init(...)`, or a run of it.

    Args:
      run: has `log(data, step=...)`.

    Example:
      >>> class Run:
      ...     def log(self, data, *, step=None):
      ...         print(step, data)
      >>> trackio(Run())(10, {"loss/total": 0.5})
      10 {'loss/total': 0.5}
    """
    return wandb(run)


def mlflow(client: HasLogMetrics) -> Logger:
    """MLflow: the module itself, inside `mlflow.start_run()`.

    Values that are not finite are left out, which some of its stores refuse.

    Args:
      client: has `log_metrics(metrics, step=...)`.

    Example:
      >>> class Client:
      ...     def log_metrics(self, metrics, *, step=None):
      ...         print(step, metrics)
      >>> mlflow(Client())(10, {"loss/total": 0.5, "grad_norm": float("nan")})
      10 {'loss/total': 0.5}
    """

    def log(step: int, values: Mapping[str, float]) -> None:
        client.log_metrics({n: v for n, v in values.items() if math.isfinite(v)}, step=step)

    return log
