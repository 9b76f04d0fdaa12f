"""Charts as SVG text. Pure functions; colours are CSS variables of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from .series import Array, Series

WIDTH, HEIGHT = 560, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 20, 12, 28
DOTS = 30  # a series of no more points shows each
COLORS = 8  # of the page: --c0 .. --c7


class Axis(NamedTuple):
    """A range of values, and where they are drawn.

    Attributes:
      low: the value at `start`.
      high: the value at `end`.
      start: in the units of the drawing.
      end: in the units of the drawing.
      log: whether equal ratios are equal lengths.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, values: Array) -> Array:
        """Where values are drawn."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        x = np.log10(np.maximum(values, 1e-300)) if self.log else values
        return self.start + (x - low) / (high - low) * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        """Round values inside the range."""
        ticks = self._decades() if self.log else []
        while len(ticks) < 2:
            ticks = _round_steps(self.low, self.high, about)
            about *= 2
        return ticks

    def _scaled(self, value: int | float) -> float:
        return math.log10(value) if self.log else value

    def _decades(self) -> list[float]:
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        every = max(1, (last - first) // 6)
        digits = (1, 2, 5) if last - first <= 2 else (1,)
        values = [d * 10.0**e for e in range(first, last + 1, every) for d in digits]
        return [v for v in values if self.low <= v * (1 + 1e-9) and v <= self.high * (1 + 1e-9)]


def _round_steps(low: int | float, high: int | float, about: int) -> list[float]:
    raw = (high - low) / about
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def number(value: int | float, *, digits: int = 4) -> str:
    """A number with so many digits, as short as it reads well.

    Example:
      >>> [number(x) for x in (0.31234, 12345.0, 3e-5, 0.0, 2_500_000.0)]
      ['0.3123', '12.3k', '3e-5', '0', '2.5M']
    """
    size = abs(value)
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if size < 1e-3:
        mantissa, exponent = f"{value:.{digits - 2}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    if size < 9999.5:
        return f"{value:.{digits}g}"
    for scale, unit in ((1e3, "k"), (1e6, "M"), (1e9, "G")):
        if size < 999.5 * scale:
            return f"{value / scale:.{digits - 1}g}{unit}"
    return f"{value:.{digits - 1}g}"


def value_range(series: Sequence[Series], *, log: bool) -> tuple[float, float] | None:
    """The range of an axis: all but the most extreme half percent, with some room.

    None if there is nothing to show (no finite value; no positive one for a logarithmic axis).
    """
    finite = _drawable(np.concatenate([s.finite for s in series] or [np.array([])]))
    if log:
        finite = finite[finite > 0]
    if not len(finite):
        return None
    low, high = (float(x) for x in np.percentile(finite, [0.5, 99.5]))
    few = len(finite) < 200
    low, high = (float(finite.min()), float(finite.max())) if few else (low, high)
    # The last values always show.
    ends = [float(_drawable(s.finite)[-1]) for s in series if len(s.finite)]
    ends = [x for x in ends if x > 0 or not log]
    low, high = min([low, *ends]), max([high, *ends])
    if log:
        room = max((high / low) ** 0.04, 1.05)
        return low / room, high * room
    flat = high - low <= 1e-9 * abs(high)
    room = (0.05 * abs(high) or 1.0) if flat else 0.05 * (high - low)
    bottom = 0.0 if 0 <= low < 0.35 * high else low - room
    return bottom, high + room


def _drawable(values: Array) -> Array:
    """Without magnitudes that the arithmetic of a chart cannot take."""
    return np.where(np.abs(values) < 1e-100, 0.0, np.clip(values, -1e100, 1e100))


def color(index: int, count: int) -> str:
    """One of eight hues that stay apart, or a ramp if there are more series than that."""
    if count <= COLORS:
        return f"var(--c{index})"
    share = 100 * index / (count - 1)
    return f"color-mix(in oklab, var(--ramp1) {share:.0f}%, var(--ramp0))"


def line_chart(
    lines: Sequence[Series],
    *,
    faint: Sequence[Series] = (),
    log: bool = False,
    colors: Sequence[str] | None = None,
    steps: tuple[float, float] | None = None,
) -> str:
    """Lines over steps, as one `<g>`.

    Args:
      lines: the series.
      faint: the same series before they were smoothed, drawn behind them.
      log: a logarithmic axis of values; what is not positive is not drawn.
      colors: of the lines.
      steps: the range of the axis of steps; that of the series if None.

    Returns:
      The group; empty if there is nothing to show.
    """
    limits = value_range([*lines, *faint], log=log)
    if limits is None:
        return ""
    colors = colors or [color(i, len(lines)) for i in range(len(lines))]
    x = Axis(*(steps or step_range(lines)), LEFT, WIDTH - RIGHT)
    y = Axis(*limits, HEIGHT - BOTTOM, TOP, log)
    drawn = [_path(s, x, y, c, "faint") for s, c in zip(faint, colors, strict=False)]
    drawn += [_path(s, x, y, c, "line") for s, c in zip(lines, colors, strict=True)]
    drawn += [_not_numbers(s, x, c) for s, c in zip(faint or lines, colors, strict=False)]
    inside = _clipped("".join(drawn))
    return f'<g class="{"log" if log else "lin"}">{_grid(x, y)}{inside}</g>'


def step_range(lines: Sequence[Series]) -> tuple[float, float]:
    """From the first to the last step of the series."""
    low = min(float(s.steps[0]) for s in lines)
    high = max(float(s.steps[-1]) for s in lines)
    return (low, high) if high > low else (low - 1, high + 1)


def _clipped(content: str) -> str:
    """The inside of the axes and a few units around it, for lines that have width."""
    x, y = LEFT - 2, 0
    box = f"{x} {y} {WIDTH - RIGHT + 4 - x} {HEIGHT - BOTTOM + 1 - y}"
    left, top, width, height = box.split()
    place = f'x="{left}" y="{top}" width="{width}" height="{height}"'
    return f'<svg {place} viewBox="{box}">{content}</svg>'


def _grid(x: Axis, y: Axis) -> str:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts: list[str] = []
    for tick, at in _placed(y, y.ticks()):
        parts.append(f'<path class="grid" d="M{LEFT} {at}H{right}"/>')
        parts.append(label(LEFT - 7, at + 3.5, tick, "end"))
    for tick, at in _placed(x, x.ticks(6)):
        parts.append(f'<path class="axis" d="M{at} {bottom}v4"/>')
        parts.append(label(at, bottom + 17, tick, "middle"))
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>')
    return "".join(parts)


def _placed(axis: Axis, ticks: list[float]) -> list[tuple[str, float]]:
    at = axis.place(np.array(ticks)).round(1).tolist()
    names = [number(t) for t in ticks]
    for digits in range(5, 13):
        if len(set(names)) == len(ticks):
            break
        names = [number(t, digits=digits) for t in ticks]
    return list(zip(names, at, strict=True))


def _path(series: Series, x: Axis, y: Axis, stroke: str, kind: str) -> str:
    """A line that breaks where a value is not a number; few points are dots as well."""
    heights = _drawable(np.nan_to_num(series.values))
    drawn = np.isfinite(series.values) & ((heights > 0) | (not y.log))
    steps, values = x.place(series.steps), y.place(np.where(drawn, heights, 1.0))
    commands: list[str] = []
    dots: list[str] = []
    pen_down = False
    for ok, a, b in zip(drawn.tolist(), steps.tolist(), values.tolist(), strict=True):
        if ok:
            point = f"{a:.1f} {min(max(b, -999), 999):.1f}"
            commands.append(f"{'L' if pen_down else 'M'}{point}")
            dots.append(f"M{point}h0")
        pen_down = ok
    title = f"<title>{escape(series.name)}</title>"
    line = f'<path class="{kind}" style="stroke:{stroke}" d="{"".join(commands)}">{title}</path>'
    if len(dots) > DOTS:
        return line
    return f'{line}<path class="dots" style="stroke:{stroke}" d="{"".join(dots)}"/>'


def _not_numbers(series: Series, x: Axis, stroke: str) -> str:
    bad = ~np.isfinite(series.values)
    marks = [
        f'<path class="bad" style="stroke:{stroke}" d="M{at - 3:.1f} {TOP - 3}l6 6m0 -6l-6 6">'
        f"<title>{escape(series.name)} is {value:g} at step {step:.0f}</title></path>"
        for at, step, value in zip(
            x.place(series.steps[bad]), series.steps[bad], series.values[bad], strict=True
        )
    ]
    return "".join(marks[:60])


def label(x: int | float, y: int | float, text: str, anchor: str, kind: str = "tick") -> str:
    """A text of a chart."""
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'
