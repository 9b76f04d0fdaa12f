"""Similarities of layers as a heat map. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from .charts import label


def heat_map(
    values: Sequence[Sequence[int | float]], *, rows: Sequence[str], columns: Sequence[str]
) -> str:
    """Similarities in 0..1 as coloured cells, the first row at the bottom, as one `<svg>`.

    The best column of each row has a frame.

    Args:
      values: `[rows][columns]`; nan is drawn empty.
      rows: their names.
      columns: their names.
    """
    cell = 44 if len(columns) <= 16 else max(8, 700 // len(columns))
    left = 30 + 7 * max((len(r) for r in rows), default=0)
    bottom = 44 if cell >= 24 else 24
    width, height = left + cell * len(columns) + 8, cell * len(rows) + bottom + 6
    parts: list[str] = []
    for i, row in enumerate(values):
        top = 4 + cell * (len(rows) - 1 - i)
        parts.append(label(left - 8, top + cell / 2 + 4, rows[i], "end") if cell >= 12 else "")
        for j, value in enumerate(row):
            parts.append(_cell(left + cell * j, top, cell, value, rows[i], columns[j]))
        finite = [(v, j) for j, v in enumerate(row) if math.isfinite(v)]
        if finite:
            parts.append(_frame(left + cell * max(finite)[1], top, cell))
    for j in range(0, len(columns), math.ceil(28 / cell)):
        parts.append(label(left + cell * (j + 0.5), height - bottom + 16, columns[j], "middle"))
    parts.append(
        label(left + cell * len(columns) / 2, height - 6, "teacher layer", "middle", "name")
    )
    turned = label(0, 0, "student layer", "middle", "name")
    parts.append(f'<g transform="translate(14 {(height - bottom) / 2})rotate(-90)">{turned}</g>')
    return (
        f'<svg viewBox="0 0 {width} {height}" style="max-width:{width}px" role="img" '
        f'aria-label="similarity of student and teacher layers">{"".join(parts)}</svg>'
    )


def _frame(x: int | float, y: int | float, size: int) -> str:
    return f'<rect class="best" x="{x + 2}" y="{y + 2}" width="{size - 5}" height="{size - 5}"/>'


def _cell(x: int | float, y: int | float, size: int, value: float, row: str, column: str) -> str:
    title = f"<title>student {escape(row)}, teacher {escape(column)}: {value:.3f}</title>"
    box = f'x="{x}" y="{y}" width="{size - 1}" height="{size - 1}" rx="3"'
    if not math.isfinite(value):
        return f'<rect class="empty" {box}>{title}</rect>'
    share = min(max(value, 0.0), 1.0)
    cell = f'<rect style="fill:{heat(share)}" {box}>{title}</rect>'
    if size < 30:
        return cell
    ink = "#fff" if share > 0.5 else "#0b0b0b"
    return cell + (
        f'<text class="value" x="{x + size / 2 - 0.5}" y="{y + size / 2 + 4}" fill="{ink}" '
        f'text-anchor="middle">{value:.2f}</text>'
    )


_HEAT = ("#e8f1fc", "#b7d3f6", "#86b6ef", "#5598e7", "#2a78d6", "#1c5cab", "#104281", "#0d2f5c")


def heat(share: int | float) -> str:
    """A colour from light (0) to dark (1) of one hue."""
    at = share * (len(_HEAT) - 1)
    i = min(int(at), len(_HEAT) - 2)
    mix: Callable[[int], int] = lambda k: round(
        int(_HEAT[i][k : k + 2], 16) * (1 - at + i) + int(_HEAT[i + 1][k : k + 2], 16) * (at - i)
    )
    return f"#{mix(1):02x}{mix(3):02x}{mix(5):02x}"
