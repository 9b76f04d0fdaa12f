"""SIGINT and SIGTERM: finish the step, save, and leave with an exit code of their own."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Generator
from types import FrameType

INTERRUPTED = 75
"""Exit code of a run that was told to stop and can be resumed (EX_TEMPFAIL of sysexits.h)."""

PATIENCE = 2.0
"""Seconds that a loader has to give its batch after a signal, so that the step is finished."""


class Interrupted(SystemExit):
    """Raised by `fit` after a signal, when everything is saved; exits with `INTERRUPTED`."""

    def __init__(self, name: str) -> None:
        super().__init__(INTERRUPTED)
        self.signal = name


class StillWaiting(BaseException):
    """Raised out of a loader that gave no batch in time after a signal."""


class Stop:
    """Whether a signal has come, and which."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self.pressed_twice = False
        self._waiting = self._overdue = False
        self._reminder: threading.Timer | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._overdue:
            self._overdue = False
            if self._waiting:
                raise StillWaiting
        elif self.signal is not None and number == signal.SIGINT:
            self.pressed_twice = True
            raise KeyboardInterrupt  # now, not after the step
        else:
            self.signal = signal.Signals(number).name
            if self._waiting and hasattr(signal, "pthread_kill"):
                self._reminder = threading.Timer(PATIENCE, self._remind, [number])
                self._reminder.daemon = True
                self._reminder.start()

    def _remind(self, number: int) -> None:
        """Interrupt the main thread where it still waits, by the same signal once more."""
        main = threading.main_thread().ident
        if self._waiting and main is not None:
            self._overdue = True
            signal.pthread_kill(main, number)

    @contextlib.contextmanager
    def waiting(self) -> Generator[None]:
        """The host waits for a loader inside. If a signal comes and it still waits `PATIENCE`
        seconds later, it is left with `StillWaiting`; what it was to give is drawn again when the
        run is resumed."""
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False

    def close(self) -> None:
        """No signal is sent any more."""
        if self._reminder is not None:
            self._reminder.cancel()
            self._reminder.join()


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
        stop.close()
        for number, handler in before.items():
            signal.signal(number, handler)
