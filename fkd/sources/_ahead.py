"""A source whose values are computed ahead of the step, in a thread beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import optree
import torch
from torch import Tensor

from fkd._base.types import Batch
from fkd._objective.objective import Objective
from fkd._refs.refs import Ref
from fkd.loops._base.random import drawn_so_far
from fkd.loops._data.ahead import Pending
from fkd.loops._data.batch import Signature, normalised, signature
from fkd.loops._data.epochs import Loader

from ._errors import SourceError
from ._live import Live, Precision
from ._source import Source, attach
from ._workers import Workers


class Ahead:
    """See `ahead`, which makes it.

    Attributes:
      source: whose values it gives.
      batches: how many batches ahead of the step.
      name: of the source.
    """

    def __init__(self, source: Source, batches: int) -> None:
        self.source, self.batches, self.name = source, batches, source.name
        self._workers = Workers(1, f"fkd ahead ({source.name})")
        self._known: set[Signature] = set()
        device = source.teacher.device if isinstance(source, Live) else torch.device("cpu")
        self._beside = _Stream(device) if device.type == "cuda" else None

    @property
    def place(self) -> str:
        """In words, for `check` and `draw`."""
        ahead = f"{self.batches} ahead of the step"
        return ", ".join(x for x in (getattr(self.source, "place", ""), ahead) if x)

    def key(self, ref: Ref) -> str | None:
        """Under which key it gives the value of a ref; None if it does not."""
        return self.source.key(ref)

    def values(self, batch: Batch) -> Mapping[str, Any]:
        """The values for a batch by key, computed now."""
        return self.source.values(batch)

    def start(self, batch: Batch) -> Pending:
        """Compute the values for a batch in the thread.

        The first batch of each structure is computed here and now: that may compile, which
        changes settings of the whole process, and shows whether the source can run in a thread.
        """
        now = signature(normalised(batch))
        if now not in self._known:
            self._workers.submit(_nothing).result()  # what is under way does not meet it
            future: Future[Any] = Future()
            future.set_result(_without_draws(self.name, lambda: self.source.values(batch)))
            self._known.add(now)
            return future
        if self._beside is None:
            return self._workers.submit(self.source.values, batch)
        return self._beside.submit(self._workers, self.source.values, batch)

    def attach(self, loader: Loader) -> Loader:
        """The loader, with the values in its batches; see `Kept.attach`."""
        return attach(self, loader)

    def close(self) -> None:
        """End the thread; the batch that it is at is finished. Leaving a `with` does the same, and
        so does forgetting the source."""
        self._workers.close()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        # What only some sources have: codes, verify_models, like, rounding, teacher.
        if name.startswith("_") or name == "source":
            raise AttributeError(name)
        return getattr(self.source, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return Ahead, (self.source, self.batches)

    def __repr__(self) -> str:
        return f"ahead({self.source!r}, batches={self.batches})"


class _Stream:
    """A teacher's own stream on a CUDA device, beside that of a step on the same device."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def submit(self, workers: Workers, fn: Callable[[Batch], Any], batch: Batch) -> Pending:
        """Compute `fn(batch)` in the thread, on this stream."""
        ready = torch.cuda.current_stream(self.device).record_event()  # the batch may be there
        return _OnDevice(self.device, workers.submit(self._computed, fn, batch, ready))

    def _computed(self, fn: Callable[[Batch], Any], batch: Batch, ready: Any) -> tuple[Any, Any]:
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            self.stream.wait_event(ready)
            return fn(batch), self.stream.record_event()


class _OnDevice:
    """Values that are still being computed on a device when they are handed over."""

    def __init__(self, device: torch.device, future: Future[tuple[Any, Any]]) -> None:
        self.device, self.future = device, future

    def result(self) -> Any:
        """The values; the stream of the step waits for them, and the host does not."""
        values, done = self.future.result()
        here = torch.cuda.current_stream(self.device)
        here.wait_event(done)
        for x in optree.tree_leaves(values):
            if isinstance(x, Tensor) and x.device == self.device:
                x.record_stream(here)
        return values

    def cancel(self) -> None:
        """See `Pending`."""
        self.future.cancel()


def _nothing() -> None:
    """A job that is done when those before it are."""


def _without_draws(name: str, compute: Callable[[], Any]) -> Any:
    """What `compute` gives.

    Raises:
      SourceError: it draws from the process's generators, which a step draws from at that time.
    """
    before = drawn_so_far()
    values = compute()
    if drawn_so_far() != before:
        raise SourceError(
            f"ahead: the source {name!r} draws random numbers, and the generators of the process "
            "are the step's while it runs beside it. Use the source as it is: "
            "source.attach(loader)."
        )
    return values


def ahead(
    source: Source | Objective,
    *,
    batches: int = 1,
    device: torch.device | str | None = None,
    compile: bool | Mapping[str, Any] = False,
    precision: Precision = "fp32",
) -> Ahead:
    """A source whose values are computed before the step needs them, in a thread beside it.

        source = fkd.sources.ahead(objective, device="cuda:1")
        step = train_step(fkd.sources.bind(objective, source), optimizer)
        fit(step, step.init(), source.attach(loader), epochs=3)

    While the step is at one batch, the thread is at the next ones: a teacher on another device,
    or on cores of the CPU that the step leaves idle; or a cache on a slow disk. Values and order
    are those of the source to the bit, since they depend on the batch alone (an objective's
    frontier never depends on the student). An error in the thread stands where the values of its
    batch would. A run that is resumed draws again what was drawn ahead and not used. Batches are
    drawn so many ahead, so that a run with `steps=` draws up to that many that it does not use.

    Args:
      source: any source, or an objective, of which the live teacher is taken.
      batches: how many batches ahead, at least 1. They stay in memory until they are used.
      device, compile, precision: of the teacher, as in `live`, if an objective is given.

    Raises:
      SourceError: `batches` is less than 1; options of a teacher are given for a source; or those
        of `live`.

    Example:
      >>> objective = Objective(
      ...     {"kd": term(kl, student.logits, teacher.logits, temperature=2.0)},
      ...     student=trainable(torch.nn.Linear(4, 3)), teacher=frozen(torch.nn.Linear(4, 3)),
      ... )
      >>> source = fkd.sources.ahead(objective, batches=2)
      >>> [sorted(b) for b in source.attach([{"input": torch.ones(1, 4)}] * 2)][1]
      ['fkd.sources/live-363ce5d7', 'input']
    """
    if batches < 1:
        raise SourceError(
            f"ahead: batches is {batches}; at least 1 is expected. For none, use the source as it "
            "is: source.attach(loader)."
        )
    if isinstance(source, Objective):
        source = Live(source, device=device, compile=compile, precision=precision)
    elif device is not None or compile or precision != "fp32":
        raise SourceError(
            f"ahead: device, compile and precision are of a teacher, and {source!r} is a source. "
            "Give them where it is made: fkd.sources.live(objective, device=...)."
        )
    return Ahead(source.beside() if isinstance(source, Live) else source, batches)
