"""Functions of batches that take their time elsewhere: several batches are under way at once."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar, runtime_checkable

from fkd._base.types import Batch

P = TypeVar("P")


@runtime_checkable
class Pending(Protocol):
    """A batch that is being made; a `concurrent.futures.Future` is one."""

    def result(self) -> Any:
        """The batch; waits for it, and raises what went wrong."""
        ...

    def cancel(self) -> Any:
        """Nobody wants it any more."""
        ...


@runtime_checkable
class Startable(Protocol):
    """A function of a batch that can be started before its value is needed.

    Attributes:
      batches: how many batches ahead of the one that is used.
    """

    batches: int

    def start(self, batch: Batch) -> Pending:
        """Begin with a batch. Not a word of the function's may depend on the batches before."""
        ...


def applied(
    fn: Callable[[Batch], Batch], items: Iterator[tuple[Batch, P]]
) -> Iterator[tuple[Batch, P]]:
    """The batches after a function, in their order; what stands beside each stays beside it.

    A function that can be started is started `batches` batches ahead of the one that is given
    out. An error stands where its batch would: the batches before it are given out first.
    """
    if isinstance(fn, Startable):
        return _started(fn, items)
    return ((fn(batch), beside) for batch, beside in items)


def _started(fn: Startable, items: Iterator[tuple[Batch, P]]) -> Iterator[tuple[Batch, P]]:
    waiting: collections.deque[tuple[Pending, P]] = collections.deque()
    error: Exception | None = None
    ended = False
    try:
        while True:
            while not ended and len(waiting) <= fn.batches:
                try:
                    drawn = next(items, None)
                    if drawn is not None:
                        waiting.append((fn.start(drawn[0]), drawn[1]))
                except Exception as failure:
                    drawn, error = None, failure
                ended = drawn is None
            if not waiting:
                break
            pending, beside = waiting.popleft()
            yield pending.result(), beside
        if error is not None:
            raise error
    finally:
        for pending, _ in waiting:
            pending.cancel()
