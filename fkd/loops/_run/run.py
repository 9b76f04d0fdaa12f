"""One run, as it is between two steps: its state, its place in the data, what it writes to."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from fkd.parallel._world import World

from .._base.state import State
from .._checkpoint.behind import Writer
from .._data.batch import Signature
from .._data.epochs import Epochs
from .._evaluate.evaluate import Evaluator
from .._log.log import Log, Throughput
from .._log.loggers import Loggers
from .._step.train_step import TrainStep
from .display import Display
from .events import Event
from .options import Options
from .prepared import Prepared
from .signals import Stop
from .window import Window


class Position(NamedTuple):
    """Where a run is, besides its state. Goes into the checkpoints.

    Attributes:
      epoch: the epoch under way, from 0.
      index: how many of its batches are used.
      evaluated_at: the step of the last evaluation.
      best, best_step: the best value so far, and when it was measured.
      stale: how many evaluations have not improved it since.
      nonfinite: how many updates in a row were left out.
    """

    epoch: int = 0
    index: int = 0  # pyright: ignore[reportIncompatibleMethodOverride]
    evaluated_at: int | None = None
    best: float | None = None
    best_step: int | None = None
    stale: int = 0
    nonfinite: int = 0


@dataclass
class Run:
    """The mutable shell of one run."""

    step: TrainStep
    state: State
    options: Options
    fingerprint: Any
    stop: Stop = field(default_factory=Stop)
    log: Log | None = None
    loggers: Loggers = field(default_factory=Loggers)
    evaluator: Evaluator | None = None
    at: Position = field(default_factory=Position)
    window: Window = field(default_factory=Window)
    throughput: Throughput = field(default_factory=lambda: Throughput(time.perf_counter()))
    prepared: Prepared = field(default_factory=Prepared)
    compilations: int = 0
    compile_seconds: float = 0.0
    first: Signature | None = None
    train: Epochs | None = None
    dev: Epochs | None = None
    place: dict[str, Any] | None = None
    can_keep_place: bool = True
    writer: Writer = field(default_factory=Writer)
    display: Display = field(default_factory=Display)
    shapes: set[Signature] = field(default_factory=set[Signature])
    saved_at: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    told_left_out: bool = False
    infinite: frozenset[str] = frozenset()  # what of the state was not finite at its beginning
    evaluations: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    told_to_stop: str | None = None  # by a signal to any process of several
    process: int = field(default_factory=os.getpid)

    def event(
        self,
        kind: Literal["start", "log", "evaluate", "save", "epoch", "end"],
        values: Mapping[str, float] | None = None,
        **more: Any,
    ) -> Event:
        """An event of now, which the callbacks have seen."""
        event = Event(kind, self.state.step, self.at.epoch, self.state, dict(values or {}), **more)
        for callback in self.options.callbacks:
            callback(event)
        return event

    def replaying(self, batches: int, of: int) -> None:
        """Show that batches before the place are drawn again."""
        self.display.replaying(batches, of)

    def wrote(self, values: Mapping[str, float], kind: Literal["train", "eval"]) -> None:
        """Log the values of now, and show them."""

        def write() -> None:
            if self.log is not None:
                self.log.write(values, step=self.state.step, kind=kind, epoch=self.at.epoch)
            self.loggers.write(self.state.step, values)
            self.display.write(values, step=self.state.step, kind=kind)

        self.world.from_first(write)

    @property
    def signal(self) -> str | None:
        """The signal after which the run is to end; several processes have agreed on it."""
        return self.stop.signal if self.world.size == 1 else self.told_to_stop

    @property
    def world(self) -> World:
        """The processes of the run."""
        return self.step.world

    @property
    def ended(self) -> str:
        """Why there is nothing left to do; empty if there is."""
        options, at = self.options, self.at
        if options.patience is not None and at.stale >= options.patience:
            return (
                f"stopped early: {options.best} has not improved in {at.stale} evaluations; "
                f"best {at.best} at step {at.best_step}"
            )
        if options.steps is not None and self.state.step >= options.steps:
            return _done(options.steps, "step")
        if options.epochs is not None and at.epoch >= options.epochs:
            more = "" if at.epoch == options.epochs else f" (the run has {at.epoch} behind it)"
            return _done(options.epochs, "epoch") + more
        return ""

    @property
    def where(self) -> str:
        """The batch under way, in words."""
        return f"batch {self.at.index} of epoch {self.at.epoch} (step {self.state.step})"


def _done(count: int, what: str) -> str:
    return f"1 {what} is done" if count == 1 else f"{count} {what}s are done"
