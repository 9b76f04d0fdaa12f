"""SIGINT and SIGTERM: finish the step, save, and leave with an exit code of their own."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Generator
from types import FrameType

INTERRUPTED = 75
"""Exit code of a run that was told to stop and can be resumed (EX_TEMPFAIL of sysexits.h)."""


class Interrupted(SystemExit):
    """Raised by `fit` after a signal, when everything is saved; exits with `INTERRUPTED`."""

    def __init__(self, name: str) -> None:
        super().__init__(INTERRUPTED)
        self.signal = name


class Stop:
    """Whether a signal has come, and which."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # pressed twice: now, not after the step
        self.signal = signal.Signals(number).name


@contextlib.contextmanager
def listening() -> Generator[Stop]:
    """Turn the two signals into a request, while inside (in the main thread only)."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
