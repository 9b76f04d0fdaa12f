"""What a person who watches a run sees of it, on standard error."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from .._base.waiting import said
from .._log.progress import Progress, open_progress

_log = logging.getLogger("fkd")


class Display:
    """How far a run is, and what it waits for. What cannot be shown does not end the run.

    Args:
      progress: a bar or lines; None shows nothing.
      patience: seconds after which a wait is said to be one; None: a moment.
    """

    def __init__(self, progress: Progress | None = None, *, patience: float | None = None) -> None:
        self._progress, self._patience = progress, patience
        self._turn = threading.Lock()
        self._replayed_at = 0.0

    def advance(self, step: int) -> None:
        """Move the bar."""
        self._show(lambda shown: shown.advance(step))

    def write(self, values: Mapping[str, Any], *, step: int, kind: str) -> None:
        """The values of a log point or an evaluation."""
        self._show(lambda shown: shown.write({"step": step, "kind": kind, **values}))

    def message(self, text: str) -> None:
        """A line."""
        self._show(lambda shown: shown.message(text))

    def close(self) -> None:
        """End the bar."""
        self._show(lambda shown: shown.close())
        self._progress = None

    def waiting(self, what: str, *, done: str = "") -> contextlib.AbstractContextManager[None]:
        """Say what is waited for, with the seconds so far, if it takes more than a moment.

        Args:
          what: is done inside, such as "compiling".
          done: what was done, for a line at the end; none if empty.
        """
        if self._progress is None:
            return contextlib.nullcontext()
        stays = not self._redrawn
        return said(
            what, self._say, done=done, end=self.message, patience=self._patience, stays=stays
        )

    def replaying(self, batches: int, of: int) -> None:
        """How many batches before the place of a resumed run are drawn again."""
        now = time.monotonic()
        if batches == 1:
            self.message(
                f"drawing the {of} batches before the place in the epoch again, since this loader "
                "cannot be put there (by state_dict and load_state_dict, or by index)"
            )
            self._replayed_at = now
        elif now - self._replayed_at >= (1.0 if self._redrawn else 15.0):
            self._replayed_at = now
            self._say(f"batch {batches} of {of} ({100 * batches // of} %)")

    @property
    def _redrawn(self) -> bool:
        """Whether a passing word takes the place of the one before."""
        return self._progress is not None and self._progress.redrawn

    def _say(self, text: str) -> None:
        """A passing word: in the bar, or a line."""
        self._show(lambda shown: shown.note(text))

    def _show(self, action: Callable[[Progress], None]) -> None:
        with self._turn:
            if self._progress is None:
                return
            try:
                action(self._progress)
            except (OSError, ValueError, AttributeError) as error:  # a terminal that was closed
                self._progress = None
                _log.warning("progress is not shown any more: %s", error)


def open_display(*, shown: bool, total: int | None, initial: int) -> Display:
    """The display of a run.

    Args:
      shown: False: nothing is shown.
      total: steps of the whole run, if known.
      initial: steps that are done already.
    """
    if not shown:
        return Display()
    try:
        return Display(open_progress(total=total, initial=initial))
    except (OSError, ValueError, AttributeError) as error:  # no standard error, or a closed one
        _log.warning("progress is not shown: %s", error)
        return Display()
