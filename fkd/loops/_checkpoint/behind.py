"""Writing beside the steps: one checkpoint at a time, in a thread."""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, runtime_checkable


class Writes(enum.IntEnum):
    """What a writer says of itself."""

    NOTHING = 0
    NOW = 1
    IS_DONE = 2
    HAS_FAILED = 3


@runtime_checkable
class Last(Protocol):
    """What is left to do when everything is written, in the thread that waits for it."""

    def finish(self, error: BaseException | None) -> None:
        """Called with what the write has raised. It raises that, or an error that names it."""
        ...

    def abandon(self) -> None:
        """Called instead where the run has failed meanwhile: nothing of it is to be left."""
        ...


class Writer:
    """A thread that writes, one thing after the other. What fails there is raised by the next
    `wait`, in the thread that asked for it."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._last: Last | None = None

    def start(self, write: Callable[[], object], last: Last | None = None) -> None:
        """Begin to write, when what was begun before is done.

        Raises:
          Exception: what the write before this one has raised; this one is not begun.
        """
        self.wait()
        self._last = last
        self._thread = threading.Thread(target=self._run, args=(write,), name="fkd-checkpoint")
        self._thread.start()

    @property
    def state(self) -> Writes:
        """Whether something is being written, or was and is not waited for yet."""
        if self._thread is None:
            return Writes.NOTHING
        if self._thread.is_alive():
            return Writes.NOW
        return Writes.IS_DONE if self._error is None else Writes.HAS_FAILED

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
          Exception: what the last write has raised; once.
        """
        error, last = self._joined()
        if last is not None:
            last.finish(error)
        elif error is not None:
            raise error

    def _joined(self) -> tuple[BaseException | None, Last | None]:
        """What is known when the thread has ended; forgotten here."""
        if self._thread is not None:
            self._thread.join()
        error, last = self._error, self._last
        self._thread = self._error = self._last = None
        return error, last

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None and self._last is not None:  # the others may be gone
            _, last = self._joined()
            if last is not None:
                last.abandon()
            return
        try:
            self.wait()
        except Exception as second:
            if error is None:
                raise
            error.add_note(f"After this, while saving: {second}")

    def _run(self, write: Callable[[], object]) -> None:
        try:
            write()
        except BaseException as error:
            self._error = error
