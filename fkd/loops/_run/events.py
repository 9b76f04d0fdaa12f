"""What a run tells its user, and what the user tells a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from .._data.epochs import Loader
from .._evaluate.evaluate import Metric
from .._state import State


class Event(NamedTuple):
    """Something that happened in a run.

    Attributes:
      kind: `"start"`, `"log"`, `"evaluate"`, `"save"`, `"epoch"` (an epoch ended), `"end"`.
      step: how many steps are done.
      epoch: the epoch under way, from 0.
      state: after that step. The next step uses it up: copy what you keep.
      values: what was measured, by name.
      message: in words.
      path: the checkpoint of a `"save"`.
    """

    kind: Literal["start", "log", "evaluate", "save", "epoch", "end"]
    step: int
    epoch: int
    state: State
    values: dict[str, float]
    message: str = ""
    path: Path | None = None


class Result(NamedTuple):
    """What `run` gives.

    Attributes:
      state: after the last step.
      evaluations: the values of each evaluation, with its `"step"`.
      best: the best value of the chosen metric, None without evaluation.
      best_step: when it was reached.
      message: why the run ended.
    """

    state: State
    evaluations: tuple[dict[str, float], ...]
    best: float | None
    best_step: int | None
    message: str


@dataclass(frozen=True)
class Options:
    """The options of `fit`, which documents them."""

    epochs: int | None
    steps: int | None
    dev: Loader | None
    metrics: Mapping[str, Metric]
    evaluate_every: int | None
    compile_evaluation: bool
    best: str
    higher_is_better: bool
    patience: int | None
    log_dir: Path | None
    log_every: int
    tensorboard: bool
    progress: bool
    checkpoint_dir: Path | None
    save_every: int | None
    keep_last: int
    keep_best: int
    resume: bool
    max_nonfinite: int
    callbacks: tuple[Callable[[Event], None], ...]
    config: Mapping[str, Any]
