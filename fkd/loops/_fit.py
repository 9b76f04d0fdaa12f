"""The training loop: a generator of events around a step, and what happens between steps."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fkd._check import check
from fkd._draw import draw
from fkd._types import Batch

from ._checkpoint import load_latest, save
from ._data import Loader, epoch_batches, examples_in, structure, structure_change, tokens_in
from ._errors import LoopError, NonFiniteError
from ._events import Event, Options
from ._lock import lock
from ._log import Log, Throughput, open_log
from ._save import fingerprint, from_tree, to_tree
from ._signals import Interrupted, Stop, listening
from ._similarity_map import save_similarity
from ._state import State
from ._step import TrainStep
from ._window import Window


@dataclass(frozen=True)
class Position:
    """Where a run is, besides its state. Goes into the checkpoints."""

    epoch: int = 0
    index: int = 0
    best: float | None = None
    best_step: int | None = None
    stale: int = 0
    nonfinite: int = 0


@dataclass
class Run:
    """The mutable shell of one run: its state, its place in the data, its open files."""

    step: TrainStep
    state: State
    options: Options
    fingerprint: Any
    stop: Stop = field(default_factory=Stop)
    log: Log | None = None
    at: Position = field(default_factory=Position)
    window: Window = field(default_factory=Window)
    throughput: Throughput = field(default_factory=lambda: Throughput(time.perf_counter()))
    structure: Any = None
    saved_at: int | None = None
    evaluated_at: int | None = None
    ended: str = ""

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

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""
        options = self.options
        if options.epochs is not None and self.at.epoch >= options.epochs:
            self.ended = self.ended or f"{options.epochs} epochs are done"
        if options.steps is not None and self.state.step >= options.steps:
            self.ended = self.ended or f"{options.steps} steps are done"
        return bool(self.ended)

    @property
    def where(self) -> str:
        """The batch under way, in words."""
        return f"batch {self.at.index} of epoch {self.at.epoch} (step {self.state.step})"


def events(step: TrainStep, state: State, loader: Loader, options: Options) -> Iterator[Event]:
    """The events of a run, as `fit` describes them."""
    with contextlib.ExitStack() as stack:
        for folder in dict.fromkeys(filter(None, [options.checkpoint_dir, options.log_dir])):
            stack.enter_context(lock(folder))
        run = Run(step, state, options, fingerprint(step, state))
        came_from = _resume(run)
        _open(run, loader, stack, resumed=bool(came_from))
        run.stop = stack.enter_context(listening())
        yield run.event("start", message=came_from or "from the beginning")
        try:
            yield from _epochs(run, loader)
            yield from _end(run)
        except (Interrupted, NonFiniteError):
            raise  # saved already
        except Exception as error:
            _save_after(run, error)
            raise


def _epochs(run: Run, loader: Loader) -> Iterator[Event]:
    while not run.done:
        count = 0
        for batch in _batches(run, loader):
            count += 1
            _advance(run, batch)
            yield from _after_step(run)
            if run.done:
                return
        if count == 0 and run.at.index == 0:
            raise LoopError(
                f"the loader gave no batch in epoch {run.at.epoch}. It is empty, or an iterator "
                "that can be used only once: pass a DataLoader, a list, or a function that makes "
                "the batches of an epoch (its argument is a seed)."
            )
        run.at = replace(run.at, epoch=run.at.epoch + 1, index=0)
        yield from _after_epoch(run)


def _batches(run: Run, loader: Loader) -> Iterator[Batch]:
    """The batches of the epoch from here on; an error in making one names it."""
    batches = epoch_batches(loader, run.state.seed, run.at.epoch, skip=run.at.index)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception as error:
            raise LoopError(f"{run.where}: the loader failed: {error!r}") from error
        yield batch


def _advance(run: Run, batch: Batch) -> None:
    """One step."""
    now = structure(batch)
    if run.structure is None:
        run.structure = now
        _describe(run, batch)
    change = structure_change(run.structure, now)
    if change is not None:
        raise LoopError(f"{run.where}: its structure is not that of the first batch: {change}.")
    try:
        run.state, metrics = run.step(run.state, batch)
    except Exception as error:
        raise LoopError(f"{run.where}: the step failed: {error}") from error
    run.at = replace(run.at, index=run.at.index + 1)
    run.window.add(metrics)
    run.throughput = run.throughput.add(examples=examples_in(batch), tokens=tokens_in(batch))
    if run.log is not None:
        run.log.advance(run.state.step)


def _after_step(run: Run) -> Iterator[Event]:
    options, step = run.options, run.state.step
    if step % options.log_every == 0:
        yield from _log(run)
    if options.evaluate_every and step % options.evaluate_every == 0:
        yield from _evaluate(run)
    if options.save_every and step % options.save_every == 0:
        yield from _save(run)
    if run.stop.signal is not None:
        yield from _log(run)
        yield from _save(run)
        raise Interrupted(run.stop.signal)


def _after_epoch(run: Run) -> Iterator[Event]:
    yield run.event("epoch")
    if run.options.evaluate_every is None:
        yield from _evaluate(run)
    if run.options.save_every is None:
        yield from _save(run)


def _end(run: Run) -> Iterator[Event]:
    yield from _log(run)
    yield from _evaluate(run)
    yield from _save(run)
    if run.options.log_dir is not None and run.options.dev is not None:
        save_similarity(run.step.objective, run.state, run.options.dev, run.options.log_dir)
    yield run.event("end", message=run.ended)


def _log(run: Run) -> Iterator[Event]:
    """Fetch the metrics since the last log point: the only moment when the host waits."""
    if not len(run.window):
        return
    found = run.window.fetch()
    now = time.perf_counter()
    values = {**found.values, **run.step.rates(run.state), **run.throughput.rates(now=now)}
    run.throughput = Throughput(now)
    if run.log is not None:
        run.log.write(values, step=run.state.step, kind="train", epoch=run.at.epoch)
    yield run.event("log", values)
    for finite in found.finite:
        run.at = replace(run.at, nonfinite=0 if finite else run.at.nonfinite + 1)
        if run.at.nonfinite >= run.options.max_nonfinite:
            yield from _save(run)
            raise NonFiniteError(
                f"{run.where}: {run.at.nonfinite} updates in a row were left out, since "
                f"{', '.join(found.culprits)} were not finite. The parameters are those before."
            )


def _evaluate(run: Run) -> Iterator[Event]:
    """Evaluate on the dev set, remember the best, and stop early if it has not improved."""
    options = run.options
    if options.dev is None or run.evaluated_at == run.state.step:
        return
    evaluator = run.step.evaluator(options.metrics)
    values = evaluator(run.state, epoch_batches(options.dev, run.state.seed, -1))
    if options.best not in values:
        raise LoopError(f"best={options.best!r} is not measured. Measured: {', '.join(values)}.")
    run.evaluated_at = run.state.step
    value, best = values[options.best], run.at.best
    better = best is None or (value > best if options.higher_is_better else value < best)
    if better and not math.isnan(value):
        run.at = replace(run.at, best=value, best_step=run.state.step, stale=0)
    else:
        run.at = replace(run.at, stale=run.at.stale + 1)
    if run.log is not None:
        named = {f"eval/{name}": v for name, v in values.items()}
        run.log.write(named, step=run.state.step, kind="eval", epoch=run.at.epoch)
    if options.checkpoint_dir is not None and (better or options.save_every is None):
        yield from _save(run, metric=value)
    yield run.event("evaluate", values)
    if options.patience is not None and run.at.stale >= options.patience:
        run.ended = (
            f"stopped early: {options.best} has not improved in {run.at.stale} evaluations; "
            f"best {run.at.best} at step {run.at.best_step}"
        )


def _save(run: Run, *, metric: float | None = None) -> Iterator[Event]:
    options, step = run.options, run.state.step
    if options.checkpoint_dir is None or (run.saved_at == step and metric is None):
        return
    path = save(
        options.checkpoint_dir,
        {"state": to_tree(run.step.objective, run.state), "position": dataclasses.asdict(run.at)},
        step=step,
        fingerprint=run.fingerprint,
        metric=metric,
        keep_last=options.keep_last,
        keep_best=options.keep_best,
        higher_is_better=options.higher_is_better,
    )
    run.saved_at = step
    yield run.event("save", message=f"saved {path.name}", path=path)


def _save_after(run: Run, error: Exception) -> None:
    """Save what was done before a fault; the fault itself is what the user must see."""
    try:
        for _ in _save(run):
            pass
    except Exception as second:
        error.add_note(f"The state could not be saved either: {second}")


def _resume(run: Run) -> str:
    """Go on from the newest good checkpoint; says which, or nothing if there is none."""
    options = run.options
    if options.checkpoint_dir is None or not options.resume:
        return ""
    found = load_latest(options.checkpoint_dir, fingerprint=run.fingerprint)
    if found is None:
        return ""
    run.state = from_tree(run.step.objective, run.state, found.tree["state"])
    run.at = Position(**found.tree["position"])
    run.saved_at = run.state.step
    skipped = "".join(f"; skipped {message}" for message in found.skipped)
    return f"resumed at step {run.state.step} from {found.path.name}{skipped}"


def _open(run: Run, loader: Loader, stack: contextlib.ExitStack, *, resumed: bool) -> None:
    options = run.options
    if options.log_dir is None:
        return
    length = len(loader) if hasattr(loader, "__len__") else None  # pyright: ignore
    total = options.steps or (options.epochs * length if options.epochs and length else None)
    run.log = stack.enter_context(
        open_log(
            options.log_dir,
            tensorboard=options.tensorboard,
            progress=options.progress,
            resume_step=run.state.step if resumed else None,
            total_steps=total,
        )
    )
    settings = {n: v for n, v in vars(options).items() if isinstance(v, int | float | str)}
    optimizer = run.fingerprint["optimizer"]["class"]
    run.log.hyperparameters(
        {**settings, "optimizer": optimizer, **run.fingerprint["step"], **options.config}
    )


def _describe(run: Run, batch: Batch) -> None:
    """The table and the drawing of the objective, once."""
    if run.log is None:
        return
    run.log.text("check", str(check(run.step.objective, batch)))
    drawing = draw(run.step.objective)
    run.log.graph(drawing.svg, text=drawing.mermaid)
