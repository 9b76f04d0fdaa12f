"""How far a run is, as HTML that a notebook shows and redraws."""

from __future__ import annotations

import html
import importlib
import math
import sys
import time
from collections.abc import Mapping
from typing import Any, ClassVar

from fkd._base.notebook import html_paragraph

from .pace import Pace, summary


class NotebookBar:
    """A bar with the total loss, and under it a line for each evaluation. It needs the notebook's
    own display alone, no package of widgets, and a saved notebook keeps its last state.

    Args:
      total: updates of the whole run, if known; no bar is drawn without.
      initial: updates that were done before.
      every: seconds between two drawings of the bar at least.
    """

    redrawn: ClassVar[bool] = True

    def __init__(
        self, *, total: int | None = None, initial: int = 0, every: int | float = 0.25
    ) -> None:
        self._pace, self._step, self._every = Pace(total=total, initial=initial), initial, every
        self._values = self._word = ""
        self._lines: list[str] = []
        self._drawn_at = -math.inf
        self._bar, self._below = _Shown(self._html()), _Shown("")

    def advance(self, step: int) -> None:
        """Move the bar."""
        self._step = step
        if time.monotonic() - self._drawn_at >= self._every:
            self._draw()

    def write(self, record: Mapping[str, Any]) -> None:
        """The total loss beside the bar; an evaluation as a line under it."""
        self._word = ""
        if record["kind"] == "train":
            self._values = summary(record)
            self.advance(record["step"])
        else:
            self._step = record["step"]
            self.message(f"step {record['step']}  {summary(record)}")

    def message(self, text: str) -> None:
        """A line under the bar."""
        self._lines.append(text)
        self._below.update(html_paragraph(self._lines))
        self._draw()

    def note(self, text: str) -> None:
        """A passing word beside the bar."""
        self._word = text
        self._draw()

    def close(self) -> None:
        """How far it came and how long it took."""
        self._word = ""
        self._bar.update(self._html(self._pace.ended(self._step)))

    def _draw(self) -> None:
        self._drawn_at = time.monotonic()
        self._bar.update(self._html())

    def _html(self, text: str | None = None) -> str:
        words = [self._pace.text(self._step) if text is None else text, self._values, self._word]
        total, bar = self._pace.total, ""
        if total:
            bar = f'<progress value="{min(self._step, total)}" max="{total}"></progress> '
        return f"<div>{bar}{html.escape('  '.join(filter(None, words)))}</div>"


class _Shown:
    """HTML in the output of the cell that runs, which can be replaced."""

    def __init__(self, page: str) -> None:
        shown = importlib.import_module("IPython.display")
        self._html = shown.HTML
        self._handle: Any = shown.display(shown.HTML(page), display_id=True)

    def update(self, page: str) -> None:
        """Other HTML in its place."""
        self._handle.update(self._html(page))


def in_notebook() -> bool:
    """Whether the output of this process is cells of a notebook, on whatever service."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return any(kind.__name__ == "ZMQInteractiveShell" for kind in type(shell).__mro__)
