"""A wait that is longer than a moment is said, with the seconds so far."""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
import time
from collections.abc import Callable, Generator, Hashable, Iterator
from typing import TypeAlias

Say: TypeAlias = Callable[[str], None]
"""Shows a line to the person who waits."""

PATIENCE = 2.0
"""Seconds after which a wait is said to be one."""

LONGEST = 30.0
"""Seconds between two lines at most: nobody is left without a word for a minute."""


@contextlib.contextmanager
def said(
    what: str,
    say: Say,
    *,
    done: str = "",
    end: Say | None = None,
    patience: float | None = None,
    stays: bool = True,
) -> Generator[None]:
    """Say what is waited for, with the seconds so far, if it takes more than a moment.

    Args:
      what: is done inside, such as "compiling the step".
      say: is called in another thread.
      done: what was done, for a line at the end; none if empty.
      end: shows that line; None: `say`.
      patience: seconds until the first line; None: `PATIENCE`.
      stays: lines are not overwritten: there are fewer and fewer of them.
    """
    first = PATIENCE if patience is None else patience
    began, over = time.monotonic(), threading.Event()

    def watch() -> None:
        for pause in _pauses(first) if stays else itertools.repeat(first):
            if over.wait(pause):
                return
            say(f"{what}, {duration(time.monotonic() - began)} so far")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    seconds = time.monotonic() - began
    if done and seconds >= first:
        (end or say)(f"{done} in {duration(seconds)}")


def _pauses(first: float) -> Iterator[float]:
    """Seconds between lines that stay: longer and longer."""
    return (min(first * 2**i, LONGEST) for i in itertools.count())


class Compiling:
    """Says that a function is compiled, which it is for each new shape of its arguments.

    Args:
      what: is compiled, in words, such as "the step".
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._known: set[Hashable] = set()

    def __call__(
        self, shape: Callable[[], Hashable], say: Say | None
    ) -> contextlib.AbstractContextManager[None]:
        """Around a call.

        Args:
          shape: gives that of the arguments; called only where something may be said.
          say: shows a line; None: nothing is said.
        """
        new = None if say is None else shape()
        if say is None or new in self._known:
            return contextlib.nullcontext()
        self._known.add(new)
        return said(f"compiling {self._what}", say, done=f"compiled {self._what}")


def on_standard_error(text: str) -> None:
    """A line on standard error, if there is one that is open."""
    if sys.stderr is not None:  # pyright: ignore[reportUnnecessaryComparison]
        with contextlib.suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)


def duration(seconds: int | float) -> str:
    """Seconds as a person says them.

    Example:
      >>> duration(5.2), duration(65), duration(3 * 3600 + 120)
      ('5.2 s', '1 min 5 s', '3 h 2 min')
    """
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours == 0:
        return f"{minutes} min {rest} s"
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
