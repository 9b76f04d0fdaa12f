"""`fit` and `run`: the loop as users call it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .._data.epochs import Loader
from .._evaluate.evaluate import Metric
from .._state import State
from .._step.train_step import TrainStep
from .events import Event, Options, Result
from .loop import events

PathLike = str | os.PathLike[str]


def fit(
    step: TrainStep,
    state: State,
    loader: Loader,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    dev: Loader | None = None,
    metrics: Mapping[str, Metric] | None = None,
    evaluate_every: int | None = None,
    compile_evaluation: bool = False,
    best: str = "loss/total",
    higher_is_better: bool | None = None,
    patience: int | None = None,
    log_dir: PathLike | None = None,
    log_every: int = 50,
    tensorboard: bool | None = None,
    progress: bool = True,
    checkpoint_dir: PathLike | None = None,
    save_every: int | None = None,
    keep_last: int = 3,
    keep_best: int = 1,
    resume: bool = True,
    max_nonfinite: int = 100,
    callbacks: Sequence[Callable[[Event], None]] = (),
    config: Mapping[str, Any] | None = None,
) -> Iterator[Event]:
    """Train, and yield what happens: log points, evaluations, checkpoints, ends of epochs.

        for event in fit(step, step.init(seed=0), loader, epochs=3, checkpoint_dir="run"):
            ...

    A run that was interrupted goes on where it was when the same call is made again: the same
    parameters after the same number of steps, bit for bit on the CPU. The order of the data is
    a function of (seed, epoch), all other randomness of (seed, step). What the run does not own
    is not in its checkpoints: 0-d tensors that were given as knobs, state that an optimizer
    keeps in its parameter groups, and what a loader remembers from one epoch to the next.

    Leaving the `for` loop early ends the run and saves nothing more.

    Args:
      step: from `train_step`.
      state: from `step.init(seed)`; used up.
      loader: batches, iterated anew for every epoch: a `DataLoader`, a list, any iterable, or a
        function of a seed that makes the batches of an epoch.
      epochs: how many passes over the loader.
      steps: how many steps in all. One of the two is needed; with both, what comes first.
      dev: batches to evaluate on.
      metrics: measured on `dev`, by name; see `evaluate`.
      evaluate_every: steps between evaluations; None: at the end of every epoch. There is one
        at the end of the run in any case.
      compile_evaluation: compile the evaluation, too (for each shape of `dev`). Worth it for
        long dev sets of few shapes.
      best: the evaluated value that decides which checkpoint is best.
      higher_is_better: None: unless it is a loss.
      patience: end the run after so many evaluations without improvement.
      log_dir: folder of `metrics.jsonl`, TensorBoard events, table and drawing.
      log_every: steps between log points. Logged losses and gradient norms are means over the
        finite steps since the last one; everything else is the value of the last step. Only
        here does the host wait for the device.
      tensorboard: None: if the package is installed.
      progress: show a progress bar (with `log_dir`).
      checkpoint_dir: folder of the checkpoints.
      save_every: steps between checkpoints; None: after every evaluation, and at the end of
        every epoch. An evaluation that is the best so far is always saved, and so is the end.
      keep_last, keep_best: how many checkpoints are kept.
      resume: go on from the newest good checkpoint, if there is one.
      max_nonfinite: end the run after so many updates in a row that were left out. The run
        looks at its log points.
      callbacks: functions of an `Event`, called before it is yielded.
      config: more hyper-parameters to log.

    Raises:
      ValueError: an option is out of range.
      CheckpointError: a checkpoint cannot be written, or is of another objective or optimizer,
        or another run holds the folder.
      ObjectiveError: the objective does not fit the first batch.
      LoopError: the loader or the step failed, at which batch; the state was saved.
      NonFiniteError: names the terms that were not finite.
      Interrupted: after SIGINT or SIGTERM, when the step is done and saved; exit code 75.
    """
    _at_least_one("fit", log_every=log_every, keep_last=keep_last, max_nonfinite=max_nonfinite)
    _at_least_one("fit", evaluate_every=evaluate_every, save_every=save_every, patience=patience)
    if epochs is None and steps is None:
        raise ValueError("fit: neither epochs nor steps is given, so the run would never end.")
    if patience is not None and dev is None:
        raise ValueError("fit: patience needs dev, the batches to evaluate on.")
    higher = not best.startswith("loss") if higher_is_better is None else higher_is_better
    installed = importlib.util.find_spec("tensorboard") is not None
    options = Options(
        epochs=epochs,
        steps=steps,
        dev=dev,
        metrics=dict(metrics or {}),
        evaluate_every=evaluate_every,
        compile_evaluation=compile_evaluation,
        best=best,
        higher_is_better=higher,
        patience=patience,
        log_dir=None if log_dir is None else Path(log_dir),
        log_every=log_every,
        tensorboard=installed if tensorboard is None else tensorboard,
        progress=progress,
        checkpoint_dir=None if checkpoint_dir is None else Path(checkpoint_dir),
        save_every=save_every,
        keep_last=keep_last,
        keep_best=keep_best,
        resume=resume,
        max_nonfinite=max_nonfinite,
        callbacks=tuple(callbacks),
        config=dict(config or {}),
    )
    return events(step, state, loader, options)


def run(step: TrainStep, state: State, loader: Loader, **options: Any) -> Result:
    """`fit` to its end. Takes the options of `fit`.

    Returns:
      A `Result`: the last state, and what the evaluations measured.
    """
    evaluations: list[dict[str, float]] = []
    message, best = "", {}
    for event in fit(step, state, loader, **options):
        state, message = event.state, event.message or message
        if event.kind == "evaluate":
            evaluations.append({"step": float(event.step), **event.values})
        best = event.values if event.kind == "end" else best
    at = best.get("best_step")
    return Result(
        state=state,
        evaluations=tuple(evaluations),
        best=best.get("best"),
        best_step=None if at is None else int(at),
        message=message,
    )


def _at_least_one(name: str, **options: int | None) -> None:
    for option, value in options.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}: {option} is {value}; at least 1 is expected.")
