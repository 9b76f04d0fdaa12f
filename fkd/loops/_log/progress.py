"""How far a run is: a bar where it can be drawn, plain lines where it cannot."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, TypeAlias

from tqdm import tqdm

from .._base.waiting import duration
from .lines import NOT_VALUES

Stream: TypeAlias = Any  # a text file that is written to; notebooks have classes of their own


class Bar:
    """A bar of tqdm that shows the total loss, with a line for each evaluation above it."""

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

    def __init__(
        self,
        stream: Stream,
        *,
        total: int | None = None,
        initial: int = 0,
        every: int | float = 30.0,
    ) -> None:
        self._stream, self._total, self._every = stream, total, every
        self._first = self._step = initial
        self._started = time.monotonic()
        self._shown_at, self._last = -math.inf, ""

    def advance(self, step: int) -> None:
        """Remember the step."""
        self._step = step

    def write(self, record: Mapping[str, Any]) -> None:
        """A line, if it is time for one."""
        self._step = record["step"]
        self._last = f"{self._where()}  {summary(record)}"
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
        seconds = time.monotonic() - self._started
        self.message(f"{self._where()}  done in {duration(seconds)}")

    def _where(self) -> str:
        seconds = time.monotonic() - self._started
        rate = (self._step - self._first) / max(seconds, 1e-9)
        text = f"step {self._step}"
        if self._total:
            text += f"/{self._total} ({100 * self._step / self._total:.0f} %)"
            if rate and self._step < self._total:
                text += f", {duration((self._total - self._step) / rate)} left"
        return text + (f", {rate:.3g} step/s" if rate else "")


Progress: TypeAlias = Bar | Lines
"""Both show steps, log points, lines that stay (`message`), and the end."""


def open_progress(
    *, total: int | None = None, initial: int = 0, stream: Stream | None = None
) -> Progress | None:
    """A bar in a terminal or a notebook, lines in a pipe or a file; None where there is no
    standard error (`2>&-`), or a closed one.

    Args:
      total: updates of the whole run, if known.
      initial: updates that are done already.
      stream: where to write; standard error if None.
    """
    output = sys.stderr if stream is None else stream
    if _in_notebook():
        from tqdm.auto import tqdm as notebook_bar

        return Bar(notebook_bar(total=total, initial=initial, unit="step"))
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


def summary(record: Mapping[str, Any]) -> str:
    """The values that a person wants at a glance: the total loss, or an evaluation's metrics."""
    if record["kind"] == "train":
        names = [n for n in ("loss/total", "loss") if n in record]
    else:
        names = [n for n in record if n not in NOT_VALUES]
        names = sorted(names, key=_rank)[:6]
    return "  ".join(f"{name.removeprefix('eval/')} {record[name]:.4g}" for name in names)


def _rank(name: str) -> int:
    """Metrics first, then the total loss, then the terms."""
    return ("loss/" in name) + ("loss/" in name and not name.endswith("loss/total"))


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return type(shell).__name__ == "ZMQInteractiveShell"
