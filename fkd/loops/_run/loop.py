"""The training loop: a generator of events around a step."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Generator, Iterator

import numpy as np

from fkd._errors import ObjectiveError
from fkd._types import Batch

from .._checkpoint.lock import lock
from .._data.batch import examples_in, normalised, signature, structure_change, tokens_in
from .._data.epochs import Loader, epoch_batches
from .._data.prefetch import Move, mover
from .._errors import LoopError, NonFiniteError
from .._state import device_of
from .events import Event
from .options import Arguments
from .session import Run, describe, evaluation, finish, log_point, save_after, save_point, start
from .signals import Interrupted, StillWaiting, listening


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
    loader, options = arguments.loader, arguments.options
    with contextlib.ExitStack() as stack:
        folders = [f.resolve() for f in (options.checkpoints, options.logs) if f is not None]
        for folder in dict.fromkeys(folders):  # one folder may be given in two spellings
            stack.enter_context(lock(folder))
        stack.enter_context(_host_generators_kept())
        run, where = start(arguments, stack)
        del arguments  # and with it the state that the steps use up
        run.stop = stack.enter_context(listening())
        try:
            yield run.event("start", message=where)
            yield from _epochs(run, loader, mover(device_of(run.state.trainable)))
            yield from finish(run)
        except NonFiniteError:
            raise  # saved already
        except (Interrupted, GeneratorExit):
            raise
        except BaseException as error:
            if not run.stop.pressed_twice:  # then at once, not after a save
                save_after(run, error)
            raise


def _epochs(run: Run, loader: Loader, move: Move) -> Iterator[Event]:
    while not run.ended:
        for batch in _batches(run, loader):
            _advance(run, batch, move)
            yield from _after_step(run)
            if run.ended:
                return
        if run.at.index == 0:
            raise LoopError(
                f"the loader gave no batch in epoch {run.at.epoch}. It is empty, or an iterator "
                "that can be used only once: pass a DataLoader, a list, or a function that makes "
                "the batches of an epoch (its argument is a seed)."
            )
        run.at = run.at._replace(epoch=run.at.epoch + 1, index=0)
        yield from _after_epoch(run)


def _batches(run: Run, loader: Loader) -> Iterator[Batch]:
    """The batches of the epoch from here on; an error in making one names it."""
    batches = epoch_batches(loader, run.state.seed, run.at.epoch, skip=run.at.index)
    while True:
        try:
            with run.stop.waiting():
                batch = next(batches)
        except StopIteration:
            return
        except StillWaiting:
            for _ in _leave(run):
                pass
            return
        except Exception as error:
            if run.stop.signal is not None:  # the signal has ended the loader's workers, too
                for _ in _leave(run):
                    pass
            raise LoopError(f"{run.where}: the loader failed: {error!r}") from error
        yield batch


def _advance(run: Run, batch: Batch, move: Move) -> None:
    """One step. The device is still at the one before, when the batch is made and copied."""
    tensors = normalised(batch)
    now = signature(tensors)
    if run.first is not None and now != run.first:
        change = structure_change(run.first, now)
        if change is not None:
            raise LoopError(f"{run.where}: its structure is not that of the first batch: {change}.")
    try:
        if run.first is None:
            run.first = now
            describe(run, tensors)
        run.state, metrics = run.step(run.state, move(tensors))
    except ObjectiveError:
        raise  # a mistake in the objective, which shows at the first batch
    except Exception as error:
        raise LoopError(f"{run.where}: the step failed: {error}") from error
    run.at = run.at._replace(index=run.at.index + 1)
    run.window.add(metrics)
    run.throughput = run.throughput.add(examples=examples_in(tensors), tokens=tokens_in(tensors))
    if run.log is not None:
        run.log.advance(run.state.step)


def _after_step(run: Run) -> Iterator[Event]:
    options, step = run.options, run.state.step
    if step % options.log_every == 0:
        yield from log_point(run)
    if options.evaluate_every and step % options.evaluate_every == 0:
        yield from evaluation(run)
    if options.save_every and step % options.save_every == 0:
        yield from save_point(run)
    if run.stop.signal is not None:
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
    assert run.stop.signal is not None
    raise Interrupted(run.stop.signal)


@contextlib.contextmanager
def _host_generators_kept() -> Generator[None]:
    """Python's and NumPy's generators as they were, afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
