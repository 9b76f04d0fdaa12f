"""One group of series as a card of the report: heading, legend, drawing, hover data."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape

import numpy as np

from .charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, color, line_chart, number
from .page import card
from .series import Series, smooth, thin

_NOISY = ("loss", "grad_norm", "agreement", "examples_per_s", "tokens_per_s")
_TITLES = {
    "loss": "Loss by term",
    "grad_norm": "Gradient norm",
    "lr": "Learning rate",
    "weight": "Weights",
    "temperature": "Temperatures",
    "skipped": "Skipped updates",
    "agreement": "Agreement of teacher and student",
    "examples_per_s": "Examples per second",
    "tokens_per_s": "Tokens per second",
}


def chart_card(
    group: str,
    members: list[Series],
    steps: tuple[float, float],
    *,
    colors: Sequence[str] | None = None,
) -> str:
    """The chart of a group.

    Args:
      group: the part of the names that the series share ("loss", "loss/hidden").
      members: the series.
      steps: the range of the axis of steps, the same for all charts of a page.
      colors: of the series.
    """
    members = sorted(members, key=lambda s: s.name.endswith("/total"))
    names = [s.name.rsplit("/", 1)[-1] for s in members]
    if colors is None:
        colors = [color(i, len(members)) for i in range(len(members))]
        if len(members) > 1 and names[-1] == "total":
            colors[-1] = "var(--ink)"
    points = max(len(s.values) for s in members)
    noisy = points >= 100 and group.split("/")[0] in _NOISY
    span = max(5.0, points / 60)
    lines = [thin(smooth(s, span=span) if noisy else s) for s in members]
    faint = [thin(s) for s in members] if noisy and len(members) <= 4 else []
    linear = line_chart(lines, faint=faint, colors=colors, steps=steps)
    log = line_chart(lines, faint=faint, colors=colors, steps=steps, log=True)
    if not linear:
        return card(_title(group), '<p class="nothing">No value is finite.</p>')
    ratio = _ratio(members)
    switch = _switch(checked=ratio > 100) if log and ratio > 3 else ""
    drawing = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(_title(group))}">'
        f"{linear}{log if switch else ''}"
        f'<line class="cursor" y1="{TOP}" y2="{HEIGHT - BOTTOM}" style="display:none"/></svg>'
    )
    data = _hover(lines, names, colors, steps)
    note = f"bold: moving average over {span:.0f} log points" if noisy else ""
    content = f'{_legend(members, names, colors)}<div class="chart">{drawing}{data}</div>'
    return card(_title(group), content, note=note, corner=switch)


def _title(group: str) -> str:
    top, _, rest = group.partition("/")
    return _TITLES[top] + (f": {rest}" if rest else "") if top in _TITLES else group


def _ratio(members: Sequence[Series]) -> float:
    positive = np.concatenate([s.finite[s.finite > 0] for s in members])
    negative = any((s.finite < 0).any() for s in members)
    if not len(positive) or negative:
        return 0.0
    low, high = np.percentile(positive, [1, 99])
    return float(high / low)


def _switch(*, checked: bool) -> str:
    mark = " checked" if checked else ""
    return f'<label class="log-switch"><input type="checkbox"{mark}>log scale</label>'


def _legend(members: Sequence[Series], names: Sequence[str], colors: Sequence[str]) -> str:
    items = [
        f'<span><i style="background:{c}"></i>{escape(name) if len(names) > 1 else "last"} '
        f"<b>{number(float(s.values[-1]))}</b></span>"
        for s, name, c in zip(members, names, colors, strict=True)
    ]
    return f'<div class="legend">{"".join(items)}</div>'


def _hover(
    lines: Sequence[Series],
    names: Sequence[str],
    colors: Sequence[str],
    steps: tuple[float, float],
) -> str:
    series = [
        {
            "name": name,
            "color": c,
            "steps": [int(x) for x in s.steps],
            "values": [float(f"{x:.6g}") if math.isfinite(x) else None for x in s.values],
        }
        for s, name, c in zip(lines, names, colors, strict=True)
    ]
    axis = {"low": steps[0], "high": steps[1], "left": LEFT, "right": WIDTH - RIGHT, "width": WIDTH}
    text = json.dumps({**axis, "series": series}, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json">{text}</script>'
