"""How far a run is: a bar where it can be drawn, plain lines where it cannot."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias

from tqdm import tqdm

from .notebook_bar import NotebookBar, in_notebook
from .pace import Pace, summary

Stream: TypeAlias = Any  # a text file that is written to; notebooks have classes of their own


class Bar:
    """A bar of tqdm that shows the total loss, with a line for each evaluation above it."""

    redrawn: ClassVar[bool] = True

    def __init__(self, bar: tqdm[Any]) -> None:
        self._bar = bar

    def advance(self, step: int) -> None:
        """Move the bar; it is redrawn ten times a second at most."""
        self._bar.update(step - self._bar.n)

    def write(self, record: Mapping[str, Any]) -> None:
        """The total loss at the end of the bar; an evaluation as a line above it."""
        self.advance(record["step"])
        if record["kind"] == "train":
            self._bar.set_postfix_str(summary(record), refresh=False)
        else:
            self.message(f"step {record['step']}  {summary(record)}")

    def message(self, text: str) -> None:
        """A line above the bar."""
        self._bar.write(text, file=self._bar.fp)

    def note(self, text: str) -> None:
        """A passing word at the end of the bar."""
        self._bar.set_postfix_str(text)

    def close(self) -> None:
        """Leave the bar as it is, on a line of its own."""
        self._bar.close()


class Lines:
    """Plain lines: the first log point, one each `every` seconds, evaluations, the last."""

    redrawn: ClassVar[bool] = False

    def __init__(
        self,
        stream: Stream,
        *,
        total: int | None = None,
        initial: int = 0,
        every: int | float = 30.0,
    ) -> None:
        self._pace, self._step = Pace(total=total, initial=initial), initial
        self._stream, self._every = stream, every
        self._shown_at, self._last = -math.inf, ""

    def advance(self, step: int) -> None:
        """Remember the step."""
        self._step = step

    def write(self, record: Mapping[str, Any]) -> None:
        """A line, if it is time for one."""
        self._step = record["step"]
        self._last = f"{self._pace.text(self._step)}  {summary(record)}"
        now = time.monotonic()
        if record["kind"] != "train":
            self.message(self._last)
        elif now - self._shown_at >= self._every:
            self._shown_at = now
            self.message(self._last)

    def message(self, text: str) -> None:
        """A line."""
        print(text, file=self._stream, flush=True)

    def note(self, text: str) -> None:
        """A line."""
        self.message(text)

    def close(self) -> None:
        """How far it came and how long it took."""
        self.message(self._pace.ended(self._step))


Progress: TypeAlias = Bar | NotebookBar | Lines
"""All show steps, log points, lines that stay (`message`), passing words (`note`), and the end.
`redrawn`: a passing word takes the place of the one before."""


def open_progress(
    *, total: int | None = None, initial: int = 0, stream: Stream | None = None
) -> Progress | None:
    """A bar in a terminal, HTML in a notebook, lines in a pipe or a file; None where there is no
    standard error (`2>&-`), or a closed one.

    Args:
      total: updates of the whole run, if known.
      initial: updates that are done already.
      stream: where to write; None: the notebook, or standard error.
    """
    if stream is None and in_notebook():
        return NotebookBar(total=total, initial=initial)
    output = sys.stderr if stream is None else stream
    if output is None or getattr(output, "closed", False):
        return None
    if output.isatty():
        width = _width(output)
        return Bar(
            tqdm(
                total=total,
                initial=initial,
                unit="step",
                file=output,
                ncols=width,
                dynamic_ncols=width is None,
            )
        )
    return Lines(output, total=total, initial=initial)


def _width(output: Stream) -> int | None:
    """A terminal that says it has no columns (some CI systems) would show an empty bar."""
    try:
        return None if os.get_terminal_size(output.fileno()).columns else 80
    except (OSError, ValueError):
        return 80
