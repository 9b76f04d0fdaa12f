"""The training loop: a generator of events around a step."""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Generator, Iterator

import torch

from fkd._base.errors import ObjectiveError
from fkd._base.types import Batch, TensorBatch

from .._base.errors import LoopError, NonFiniteError
from .._base.random import fold_in, seeded
from .._base.state import device_of
from .._checkpoint.lock import lock
from .._data.batch import (
    Signature,
    examples_in,
    normalised,
    signature,
    structure_change,
    tokens_in,
)
from .._data.prefetch import Move, mover
from .._step.explained import explain, fields_told
from .events import Event
from .options import Arguments
from .prepared import drawn_fields, prepared
from .records import describe
from .run import Run
from .session import evaluation, finish, log_point, save_after, save_point, start
from .signals import Interrupted, StillWaiting, listening
from .together import Says, together, wait_for_writers

_log = logging.getLogger("fkd")
_PREPARING = 1 << 33  # folded into the seed of a step: the seed of `prepare`


class Events(Iterator[Event]):
    """The events of a run, as `fit` describes them. Nothing is done before the first is asked for;
    if none ever is, there is a warning."""

    def __init__(self, arguments: Arguments) -> None:
        self._arguments: Arguments | None = arguments
        self._events: Generator[Event] | None = None

    def __next__(self) -> Event:
        if self._arguments is not None:
            self._events = _events(self._arguments)
            self._arguments = None
        if self._events is None:
            raise StopIteration
        return next(self._events)

    def close(self) -> None:
        """End the run here; nothing more is saved."""
        self._arguments = None
        if self._events is not None:
            self._events.close()

    def __del__(self) -> None:
        if getattr(self, "_arguments", None) is not None:
            warnings.warn(
                "fit(...) was called and its events were never asked for, so that nothing was "
                "trained. Write `for event in fit(...): ...`, or call run(...) instead.",
                RuntimeWarning,
                stacklevel=2,
            )


def _events(arguments: Arguments) -> Generator[Event]:
    options = arguments.options
    with contextlib.ExitStack() as stack:
        folders = [f.resolve() for f in (options.checkpoints, options.logs) if f is not None]
        world = arguments.step.world
        stack.enter_context(world.telling())
        for folder in dict.fromkeys(folders):  # one folder may be given in two spellings
            world.from_first(lambda folder=folder: stack.enter_context(lock(folder)))
        run, where = start(arguments, stack)
        del arguments  # and with it the state that the steps use up
        run.stop = stack.enter_context(listening())
        stack.enter_context(run.writer)  # what is under way is written, whatever happens
        try:
            yield run.event("start", message=where)
            yield from _epochs(run, mover(device_of(run.state.trainable)))
            yield from finish(run)
        except NonFiniteError:
            raise  # saved already
        except (Interrupted, GeneratorExit):
            raise
        except BaseException as error:
            if not run.stop.pressed_twice:  # then at once, not after a save
                world.fail(error)
                save_after(run, error)
            raise


def _epochs(run: Run, move: Move) -> Iterator[Event]:
    while not run.ended:
        began, first = run.at.index, run.state.step
        for batch in _batches(run):
            if _advance(run, batch, move):
                yield from _after_step(run)
            if run.ended:
                run.place = run.train.place() if run.train is not None else None
                return
        if run.at.index == 0 or (began == 0 and run.state.step == first):
            what = "no batch" if run.at.index == 0 else "only batches without examples"
            raise LoopError(
                f"the loader gave {what} in epoch {run.at.epoch}. It is empty, or an iterator "
                "that can be used only once: pass a DataLoader, a list, or a function that makes "
                "the batches of an epoch (its argument is a seed)."
            )
        run.at = run.at._replace(epoch=run.at.epoch + 1, index=0)
        yield from _after_epoch(run)


def _batches(run: Run) -> Iterator[Batch]:
    """The batches of the epoch from here on; an error in making one names it."""
    assert run.train is not None
    batches = run.train.batches(run.at.epoch, skip=run.at.index, place=run.place)
    run.place = None  # that of the checkpoint is used once
    while True:
        try:
            with run.stop.waiting():
                batch = next(batches)
        except StopIteration:
            together(run, Says.EPOCH_ENDS)
            return
        except StillWaiting:
            together(run, Says.LEAVES)
            for _ in _leave(run):
                pass
            return
        except Exception as error:
            if run.stop.signal is not None:  # the signal has ended the loader's workers, too
                together(run, Says.LEAVES)
                for _ in _leave(run):
                    pass
            raise LoopError(f"{run.where}: the loader failed: {error!r}") from error
        yield batch


def _advance(run: Run, batch: Batch, move: Move) -> bool:
    """One step; False for a batch without examples, which is left out. The device is still at the
    step before, when the batch is made and copied."""
    tensors = _tensors(run, batch)
    if not together(run, Says.HAS_A_BATCH, tensors):
        for _ in _leave(run):
            pass
    examples = examples_in(tensors)
    if examples == 0:
        _log.warning("%s has no examples and is left out", run.where)
        run.at = run.at._replace(index=run.at.index + 1)
        return False
    now = signature(tensors)
    try:
        with fields_told(batch, tensors):
            if run.first is None:
                run.first = now
                describe(run, tensors)
            with _compiling(run, now):
                run.state, metrics = run.step.advance(run.state, run.step.local(tensors, move))
    except ObjectiveError:
        raise  # a mistake in the objective, which shows at the first batch
    except Exception as error:
        if run.step.together is None:  # of the batch on the host, which can be read
            explain(error, run.step.checked, tensors)
        error = run.world.explained(error)
        notes = getattr(error, "__notes__", ())
        told = " ".join([f"{str(error).rstrip('.')}.", *notes]) if notes else str(error)
        raise LoopError(f"{run.where}: the step failed: {told}") from error
    run.at = run.at._replace(index=run.at.index + 1)
    run.window.add(metrics)
    run.throughput = run.throughput.add(examples=examples, tokens=tokens_in(tensors))
    run.display.advance(run.state.step)
    return True


def _tensors(run: Run, batch: Batch) -> TensorBatch:
    """The batch as the user prepares it, normalised, of the structure of the first one."""
    prepare, state = run.options.prepare, run.state
    if prepare is not None:
        seed = fold_in(fold_in(state.seed, state.step), _PREPARING)
        drawn = drawn_fields(batch)
        began = time.perf_counter()
        try:
            with seeded(seed, device_of(state.trainable)), torch.no_grad():
                batch = prepared(prepare, state, batch)
        except Exception as error:
            raise LoopError(f"{run.where}: prepare failed: {error!r}") from error
        if batch is None:
            raise LoopError(f"{run.where}: prepare returned None; the batch to use is expected.")
        run.prepared.seconds += time.perf_counter() - began
        run.prepared.tell(run.step.objective, drawn, batch)
    try:
        tensors = normalised(batch)
    except ValueError as error:
        raise LoopError(f"{run.where}: {error}") from error
    run.prepared.tokens += tokens_in(tensors) if prepare is not None else 0
    if run.first is not None:
        now = signature(tensors)
        change = None if now == run.first else structure_change(run.first, now)
        if change is not None:
            raise LoopError(f"{run.where}: its structure is not that of the first batch: {change}.")
    return tensors


def _compiling(run: Run, shape: Signature) -> contextlib.AbstractContextManager[None]:
    """Say so while a step compiles, which it does for every new shape."""
    new = shape not in run.shapes and run.step.options is not None
    run.shapes.add(shape)
    if not new:
        return contextlib.nullcontext()
    return run.display.waiting("compiling the step", done="compiled the step")


def _after_step(run: Run) -> Iterator[Event]:
    options, step = run.options, run.state.step
    if step % options.log_every == 0:
        yield from log_point(run)
    if options.evaluate_every and step % options.evaluate_every == 0:
        yield from evaluation(run)
    if options.save_every and step % options.save_every == 0:
        yield from save_point(run)
    if run.signal is not None:
        yield from _leave(run)


def _after_epoch(run: Run) -> Iterator[Event]:
    yield run.event("epoch")
    if run.options.evaluate_every is None:
        yield from evaluation(run)
    if run.options.save_every is None:
        yield from save_point(run)


def _leave(run: Run) -> Iterator[Event]:
    """Save, and end with the exit code of a run that was told to."""
    yield from log_point(run)
    yield from save_point(run)
    wait_for_writers(run)
    raise Interrupted(run.signal or "a signal")
