"""Writing beside the steps: one checkpoint at a time, in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType


class Writer:
    """A thread that writes, one thing after the other. What fails there is raised by the next
    `wait`, in the thread that asked for it."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, write: Callable[[], object]) -> None:
        """Begin to write, when what was begun before is done.

        Raises:
          Exception: what the write before this one has raised; this one is not begun.
        """
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(write,), name="fkd-checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
          Exception: what the last write has raised; once.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
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
