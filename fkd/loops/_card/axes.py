"""A plane with axes, in which points, names and columns are drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from .._report.charts import Axis, label, number

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 260, 56, 24, 16, 30
LETTER, LINE = 6.5, 13  # about the width of a letter of a name, and its height


@dataclass(frozen=True)
class Plot:
    """Where values are drawn.

    Attributes:
      x: from left to right.
      y: from bottom to top.
    """

    x: Axis
    y: Axis

    @staticmethod
    def around(xs: Sequence[float], ys: Sequence[float], *, log: bool, room: float = 0.12) -> Plot:
        """A plane in which all points have some room; what is not finite is left out.

        Args:
          xs: positive if `log`.
          ys: of the points.
          log: whether equal ratios of x are equal lengths.
          room: the share of free space at each side.
        """
        low, high = _range(xs, 0.0 if log else room)
        if log:
            low, high = max(low, 1e-12), max(high, 2e-12)
            wider = max((high / low) ** (2 * room), 1.5)
            low, high = low / wider, high * wider
        return Plot(
            Axis(low, high, LEFT, WIDTH - RIGHT, log), Axis(*_range(ys, room), HEIGHT - BOTTOM, TOP)
        )

    def at(self, x: float, y: float) -> str:
        """A point of a path."""
        return f"{self._place(self.x, x):.1f} {self._place(self.y, y):.1f}"

    def _place(self, axis: Axis, value: float) -> float:
        inside = value if math.isfinite(value) else axis.low
        return float(axis.place(np.array([inside]))[0])

    def grid(self) -> str:
        """Lines, ticks and their numbers."""
        bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        parts: list[str] = []
        for tick in self.y.ticks():
            at = self._place(self.y, tick)
            parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{right}"/>')
            parts.append(label(LEFT - 7, round(at + 3.5, 1), number(tick), "end"))
        for tick in self.x.ticks(5):
            at = self._place(self.x, tick)
            parts.append(f'<path class="axis" d="M{at:.1f} {bottom}v4"/>')
            parts.append(label(round(at, 1), bottom + 17, number(tick), "middle"))
        return "".join(parts) + f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>'

    def dot(self, x: float, y: float, stroke: str, title: str) -> str:
        """A point with a title that shows under the pointer."""
        path = f'<path class="dots" style="stroke:{stroke};stroke-width:11" d="M{self.at(x, y)}h0">'
        return f"{path}<title>{escape(title)}</title></path>"

    def names(self, xs: Sequence[float], ys: Sequence[float], texts: Sequence[str]) -> str:
        """Names beside points, on their left in the right half; no name covers another one."""
        middle = (LEFT + WIDTH - RIGHT) / 2
        boxes: list[tuple[float, float, float]] = []
        drawn: list[str] = []
        for b, a, text in sorted(  # from top to bottom
            (self._place(self.y, y), self._place(self.x, x), text)
            for x, y, text in zip(xs, ys, texts, strict=True)
        ):
            wide, left = LETTER * len(text), a > middle
            begin, line = (a - 10 - wide if left else a + 10), b - 8
            near = sorted(y for low, high, y in boxes if low < begin + wide and begin < high)
            for other in near:
                line = other + LINE if abs(line - other) < LINE else line
            boxes.append((begin, begin + wide, line))
            at, end = (a - 10, "end") if left else (a + 10, "start")
            drawn.append(label(round(at, 1), round(line, 1), text, end, "name"))
        return "".join(drawn)

    def column(self, low: float, high: float, y: float, shade: float, title: str) -> str:
        """A bar from the bottom."""
        a, b = self._place(self.x, low), self._place(self.x, high)
        top, bottom = self._place(self.y, y), HEIGHT - BOTTOM
        box = f'x="{a + 1:.1f}" y="{top:.1f}" width="{b - a - 2:.1f}" height="{bottom - top:.1f}"'
        style = f"fill:var(--c0);opacity:{shade:.2f}"
        return f'<rect style="{style}" {box} rx="2"><title>{escape(title)}</title></rect>'

    def drawn(self, content: str, what: str) -> str:
        """The whole drawing."""
        return (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(what)}">'
            f"{content}</svg>"
        )


def _range(values: Sequence[float], room: float) -> tuple[float, float]:
    finite = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    extra = room * (high - low) if high > low else 0.05 * abs(high) or 0.5
    return low - extra, high + extra
