"""What a run does at its beginning, between steps, and at its end."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import time
from collections.abc import Generator, Iterator

from .._base.errors import LoopError, NonFiniteError
from .._checkpoint.folder import set_aside
from .._checkpoint.lock import ensure_held
from .._data.epochs import Epochs
from .._evaluate.evaluate import Evaluator
from .._evaluate.score import readable
from .._log.log import Throughput
from .best_student import hand_over, hand_over_again
from .dry_run import try_evaluation
from .events import Event
from .fingerprint import fingerprint
from .options import Arguments
from .prepared import Prepared, restore
from .records import open_records
from .resume import nonfinite_in, to_tree
from .resumed import go_on, unusable
from .run import Position, Run
from .saving import saved
from .settings import settings
from .similarity_map import save_similarity
from .together import wait_for_writers
from .totals import position_of
from .window import Fetched

_log = logging.getLogger("fkd")


def start(arguments: Arguments, stack: contextlib.ExitStack) -> tuple[Run, str]:
    """A run at its beginning, or where its newest good checkpoint left it; and where that is."""
    step, options = arguments.step, arguments.options
    run = Run(step, arguments.state, options, fingerprint(step, arguments.state))
    run.compilations, run.compile_seconds = step.compilations, step.compile_seconds
    if options.dev is not None:
        run.evaluator = Evaluator(
            readable(step.objective, run.state),
            options.metrics,
            compile=step.options if options.compile_evaluation else None,
            autocast=step.autocast,
            again=True,
        )
        run.evaluator.expect(options.best)
        options.higher  # noqa: B018  raises if nothing says so
    run.settings = settings(step, run.state, arguments.loader)
    run.infinite = frozenset(_nonfinite(run))
    came_from, aside = _resume(run)
    if not came_from:
        run.at = run.at._replace(**position_of(run.state.step, options, arguments.loader))
    run.train = Epochs(arguments.loader, run.state.seed, told=run.replaying)
    run.dev = None if options.dev is None else Epochs(options.dev, run.state.seed)
    run.world.from_first(
        lambda: open_records(run, arguments.loader, stack, resumed=bool(came_from))
    )
    if came_from:
        run.display.message(came_from)
    hand_over_again(run)
    if run.dev is not None and not run.ended:
        try_evaluation(step, run.state, run.dev, options.metrics)
    return run, came_from or f"from the beginning{aside}"


def log_point(run: Run) -> Iterator[Event]:
    """Fetch the metrics since the last log point: the only moment when the host waits."""
    if not len(run.window):
        return
    if run.options.logs is not None:
        run.world.from_first(functools.partial(ensure_held, run.options.logs))
    fetched = run.window.fetch()
    now = time.perf_counter()
    rates = run.step.rates(run.state._replace(step=run.state.step - 1))
    values = {**fetched.values, **rates, **_speed(run, steps=len(fetched.finite), now=now)}
    values |= run.prepared.rates(seconds=now - run.throughput.since, steps=len(fetched.finite))
    run.prepared = Prepared()
    if run.step.compile_seconds:
        values["compile_s"] = run.step.compile_seconds
    run.throughput = Throughput(now)
    run.compilations, run.compile_seconds = run.step.compilations, run.step.compile_seconds
    run.wrote(values, "train")
    _tell_left_out(run, fetched)
    yield run.event("log", values)
    for finite in fetched.finite:
        run.at = run.at._replace(nonfinite=0 if finite else run.at.nonfinite + 1)
        if run.at.nonfinite >= run.options.max_nonfinite:
            yield from save_point(run)
            raise NonFiniteError(
                f"{run.where}: {run.at.nonfinite} updates in a row were left out, since "
                f"{', '.join(fetched.culprits)} were not finite. {_left(run)}."
            )


def _tell_left_out(run: Run, fetched: Fetched) -> None:
    """Say once that updates are left out. To a scale of gradients in fp16 some are a matter of
    course, as long as the losses are finite."""
    left_out = fetched.finite.count(False)
    scaled = run.state.loss_scale is not None
    usual = scaled and not any(name.startswith("loss/") for name in fetched.culprits)
    if run.told_left_out or not left_out or usual:
        return
    run.told_left_out = True
    text = (
        f"{run.where}: {left_out} of the last {len(fetched.finite)} updates were left out, since "
        f"{', '.join(fetched.culprits)} were not finite. The log counts them as skipped."
    )
    run.world.from_first(lambda: _log.warning("%s", text))


def _ended(run: Run) -> str:
    """Why the run is at its end, and how many of its updates were left out."""
    left_out = int(run.state.skipped)
    if not left_out:
        return run.ended
    were = "1 update was" if left_out == 1 else f"{left_out} updates were"
    return f"{run.ended}; {were} left out, since loss or gradient were not finite"


def _left(run: Run) -> str:
    """In words, what a run has after updates that were left out."""
    places = _poisoned(run)
    if not places:
        return "The parameters are those before"
    text = unusable(run.options.checkpoints, places)
    return text[0].upper() + text[1:]


def _poisoned(run: Run) -> list[str]:
    """What of the state is not finite, and was when the run began."""
    return [place for place in _nonfinite(run) if place not in run.infinite]


def _nonfinite(run: Run) -> list[str]:
    """What of the state is not finite, in any process."""
    here = nonfinite_in(to_tree(run.step.objective, run.state))
    return list(dict.fromkeys(p for places in run.world.exchanged(here) for p in places))


def _speed(run: Run, *, steps: int, now: float) -> dict[str, float]:
    """The throughput since the last log point: of the steps that did not compile, in the time
    that these took. Nothing if all of them did."""
    share = 1 - (run.step.compilations - run.compilations) / steps
    if share <= 0:
        return {}
    done = run.throughput
    done = done._replace(examples=done.examples * share, tokens=done.tokens * share)
    return done.rates(now=now - (run.step.compile_seconds - run.compile_seconds))


def evaluation(run: Run) -> Iterator[Event]:
    """Evaluate on the dev set, and remember the best."""
    options = run.options
    if run.dev is None or run.evaluator is None or run.at.evaluated_at == run.state.step:
        return
    with _paused(run), run.display.waiting("evaluating"):
        values = run.evaluator(run.state, run.dev.batches(-1), run.world)
    if options.best not in values:
        raise LoopError(f"best={options.best!r} is not measured. Measured: {', '.join(values)}.")
    run.evaluations.append({"step": float(run.state.step), **values})
    better = _remember(run, values[options.best])
    run.wrote({f"eval/{name}": v for name, v in values.items()}, "eval")
    if better or options.save_every is None:
        yield from save_point(run, metric=values[options.best])
    if better:
        hand_over(run, run.state)
    yield run.event("evaluate", values)


def _remember(run: Run, value: float) -> bool:
    """Whether an evaluated value is the best so far; and remember it."""
    at, higher = run.at, run.options.higher
    better = at.best is None or (value > at.best if higher else value < at.best)
    better = better and math.isfinite(value)
    run.at = at._replace(
        evaluated_at=run.state.step,
        best=value if better else at.best,
        best_step=run.state.step if better else at.best_step,
        stale=0 if better else at.stale + 1,
    )
    return better


def save_point(run: Run, *, metric: float | None = None) -> Iterator[Event]:
    """Save a checkpoint, unless that of this step says the same."""
    options, step = run.options, run.state.step
    if options.checkpoints is None or (run.saved_at == step and metric is None):
        return
    with _paused(run):
        path = saved(run, metric=metric, finite=not _poisoned(run))
    run.saved_at = step
    what = "saving" if run.options.save_async else "saved"
    yield run.event("save", message=f"{what} {path.name}", path=path)


def save_after(run: Run, error: BaseException) -> None:
    """Save what was done before a fault; the fault itself is what the user must see. A process
    that was forked inside the run saves nothing: the folder is not its own."""
    if os.getpid() != run.process or run.world.broken:
        return
    try:
        for _ in save_point(run):
            pass
        run.writer.wait()
    except Exception as second:
        error.add_note(f"After this, while saving: {second}")


def finish(run: Run) -> Iterator[Event]:
    """What is left to do when the last step is done."""
    yield from log_point(run)
    yield from evaluation(run)
    yield from save_point(run)
    wait_for_writers(run)
    logs, dev = run.options.logs, run.options.dev
    if logs is not None and dev is not None:
        try:
            save_similarity(run.step, run.state, dev, logs)
        except (ValueError, RuntimeError) as error:  # a picture must not fail a run that is done
            _log.warning("no similarity of layers: %s", error)
    best = {} if run.at.best is None else {"best": run.at.best, "best_step": run.at.best_step}
    evaluations = tuple(run.evaluations)
    yield run.event("end", best, message=_ended(run), evaluations=evaluations)  # pyright: ignore[reportArgumentType]


@contextlib.contextmanager
def _paused(run: Run) -> Generator[None]:
    """Leave the time inside out of the throughput. The host waits for the steps first, as what
    is done inside has to in any case."""
    float(run.state.skipped)
    began = time.perf_counter()
    yield
    since = run.throughput.since + time.perf_counter() - began
    run.throughput = run.throughput._replace(since=since)


def _resume(run: Run) -> tuple[str, str]:
    """Go on from the newest good checkpoint; says which, or where those of an earlier run are that
    this one does not go on with."""
    options = run.options
    if options.checkpoints is None:
        return "", ""
    if not options.resume:
        moved = functools.partial(set_aside, options.checkpoints)
        aside = run.world.shared(lambda: there.name if (there := moved()) else "")
        return "", f"; the checkpoints of an earlier run are in {aside}" if aside else ""
    resumed = go_on(
        options.checkpoints,
        run.step,
        run.state,
        fingerprint=run.fingerprint,
        settings=run.settings,
        position=Position,
    )
    if resumed is None:
        return "", ""
    run.state, run.at, run.window = resumed.state, resumed.position, resumed.window
    run.place, run.evaluations = resumed.loader, list(resumed.evaluations)
    restore(options.prepare, resumed.prepare)
    run.step.remember(resumed.related)
    run.saved_at = run.state.step
    return resumed.message, ""
