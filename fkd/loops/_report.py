"""A run as one page: what a person looks at to decide whether a distillation works."""

from __future__ import annotations

import json
import math
import os
import re
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ._charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    color,
    heat_map,
    line_chart,
    number,
    step_range,
)
from ._files import replace_file
from ._lines import read_log
from ._page import card, page, section, table, tile
from ._progress import duration
from ._series import Run, Series, collect, running_time, smooth, thin

_LOWER = re.compile(r"loss|error|perplexity|ppl|nll|mse|mae|kl\b|diverg|distance|\b[wc]er\b", re.I)
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


def report(
    run_dir: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    metric: str | None = None,
    higher_is_better: bool | None = None,
) -> Path:
    """Write one HTML page about a run, finished or not. It needs no network and no other file.

    It shows what is in the folder of the run: `metrics.jsonl` (curves), `config.json`
    (settings), `check.txt` (the table of terms), `graph.svg` (the drawing of the objective) and
    `similarity.json` (CKA between the layers).

    Args:
      run_dir: the folder of the run.
      out: the file to write; `<run_dir>/report.html` if None.
      metric: what "best" goes by, such as "eval/accuracy"; the first metric of the evaluations
        that is not a loss if None.
      higher_is_better: whether the best metric is the highest; by its name if None.

    Returns:
      The path of the page.

    Raises:
      ValueError: there is no such folder, or no such metric in it.
    """
    folder = Path(run_dir)
    if not folder.is_dir():
        raise ValueError(f"report: {folder} is not a folder; the folder of a run is expected.")
    lines = folder / "metrics.jsonl"
    run = collect(read_log(lines) if lines.exists() else [])
    if metric is not None and metric not in run.series:
        known = ", ".join(run.series) or "nothing"
        raise ValueError(f"report: metric {metric!r} was not logged; there is {known}.")
    path = Path(out) if out is not None else folder / "report.html"
    text = page(
        title=folder.resolve().name,
        subtitle=_subtitle(run),
        tiles=_tiles(run, metric or _metric(run), higher_is_better),
        sections=_sections(folder, run),
    )
    replace_file(path, text.encode("utf-8", errors="replace"))
    return path


def _subtitle(run: Run) -> str:
    if not run.times:
        return "Nothing has been logged yet."
    day = "%Y-%m-%d %H:%M"
    first, last = (time.strftime(day, time.gmtime(t)) for t in (min(run.times), max(run.times)))
    pauses = running_time(run.times)[1]
    text = f"{first} to {last} UTC"
    if pauses:
        times = "once" if len(pauses) == 1 else f"{len(pauses)} times"
        text += f", interrupted {times} ({duration(sum(pauses))} in all)"
    return text


def _metric(run: Run) -> str | None:
    names = [n for n in run.series if n.split("/")[0] in run.kinds]
    return next((n for n in names if "loss" not in n), next(iter(names), None))


def _tiles(run: Run, metric: str | None, higher_is_better: bool | None) -> str:
    found: list[str] = []
    if metric and len(run.series[metric].finite):
        found += _metric_tiles(run.series[metric], higher_is_better)
    total = run.series.get("loss/total") or run.series.get("loss")
    if total is not None:
        found.append(_loss_tile(total))
    if run.times:
        epochs = f"epoch {run.epoch:g}" if run.epoch is not None else ""
        found.append(tile("Steps", f"{run.step:,}", epochs))
        found.append(tile("Time at work", duration(running_time(run.times)[0])))
    for name, what in (("examples_per_s", "Examples/s"), ("tokens_per_s", "Tokens/s")):
        if name in run.series and len(run.series[name].finite):
            found.append(tile(what, number(float(np.median(run.series[name].finite))), "median"))
    if "skipped" in run.series:
        count = run.series["skipped"].values[-1]
        found.append(tile("Skipped updates", f"{count:,.0f}", kind="warn" if count else ""))
    bad = sum(len(s.values) - len(s.finite) for s in run.series.values())
    if bad:
        found.append(tile("Values not finite", f"{bad:,}", "marked with a cross", kind="warn"))
    return "".join(found)


def _metric_tiles(series: Series, higher_is_better: bool | None) -> list[str]:
    name = series.name
    higher = not _LOWER.search(name) if higher_is_better is None else higher_is_better
    values = np.where(np.isfinite(series.values), series.values, -math.inf if higher else math.inf)
    at = int(values.argmax() if higher else values.argmin())
    return [
        tile(f"Best {name}", number(values[at]), f"at step {series.steps[at]:,.0f}", kind="lead"),
        tile(f"Last {name}", number(series.values[-1]), f"at step {series.steps[-1]:,.0f}"),
    ]


def _loss_tile(total: Series) -> str:
    start = f"{number(float(total.finite[0]))} at the start" if len(total.finite) else ""
    last = float(total.values[-1])
    return tile("Total loss", number(last), start, kind="" if math.isfinite(last) else "warn")


def _sections(folder: Path, run: Run) -> str:
    groups: dict[str, list[Series]] = {}
    constant: list[tuple[str, str]] = []
    for name, series in run.series.items():
        evaluated = name.split("/")[0] in run.kinds
        group = name.rsplit("/", 1)[0] if "/" in name else name
        if evaluated and "loss" not in name:
            group = name  # metrics have scales of their own
        elif _part(group, run.kinds) == "Training" and _constant(series):
            constant.append((name, number(float(series.values[0]))))
            continue
        groups.setdefault(group, []).append(series)
    steps = step_range(list(run.series.values())) if run.series else (0.0, 1.0)
    parts: dict[str, list[str]] = {"Losses": [], "Evaluation": [], "Training": [], "Speed": []}
    for group, members in groups.items():
        parts[_part(group, run.kinds)].append(_chart(group, members, steps))
    nothing = "" if groups else '<p class="card nothing">There are no log points to draw.</p>'
    similarity = _similarity(folder)
    sections = [section(title, cards) for title, cards in parts.items()]
    sections.insert(2, section("Layers", [similarity] if similarity else []))
    sections += [section("Objective", _objective(folder)), _settings(folder, constant)]
    return nothing + "".join(sections)


def _constant(series: Series) -> bool:
    return len(series.values) > 1 and bool((series.values == series.values[0]).all())


def _part(group: str, kinds: set[str]) -> str:
    top = group.split("/")[0]
    if top in kinds or "agreement" in group:
        return "Evaluation"
    return "Losses" if top == "loss" else "Speed" if top.endswith("_per_s") else "Training"


def _chart(group: str, members: list[Series], steps: tuple[float, float]) -> str:
    members = sorted(members, key=lambda s: s.name.endswith("/total"))
    names = [s.name.rsplit("/", 1)[-1] for s in members]
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


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _similarity(folder: Path) -> str:
    found = _read_json(folder / "similarity.json")
    try:
        rows = [str(x) for x in found["student_layers"]]
        columns = [str(x) for x in found["teacher_layers"]]
        values = [[math.nan if x is None else float(x) for x in row] for row in found["values"]]
        if [len(row) for row in values] != [len(columns)] * len(rows) or not rows:
            raise ValueError
    except (TypeError, KeyError, ValueError):
        return ""
    text = (
        '<p class="sub">Linear CKA of the hidden states: 1 where a student layer holds the same '
        "as a teacher layer, up to a rotation. A frame marks the most alike teacher layer.</p>"
    )
    drawing = heat_map(values, rows=rows, columns=columns)
    return card("Similarity of student and teacher layers", text + drawing, wide=True)


def _objective(folder: Path) -> list[str]:
    cards: list[str] = []
    drawing = _drawing(folder / "graph.svg")
    if drawing:
        cards.append(card("Graph", f'<div class="drawing">{drawing}</div>', wide=True))
    check = folder / "check.txt"
    if check.exists():
        text = check.read_text(encoding="utf-8", errors="replace")
        cards.append(card("Terms", f"<pre>{escape(text)}</pre>", wide=True))
    return cards


def _drawing(path: Path) -> str:
    """The SVG without scripts, handlers and references to elsewhere; empty if it is none."""
    ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except (OSError, ElementTree.ParseError):
        return ""
    for parent in list(root.iter()):
        for child in list(parent):
            if str(child.tag).rsplit("}", 1)[-1].lower() in ("script", "foreignobject", "image"):
                parent.remove(child)
        for name, value in list(parent.attrib.items()):
            local = name.rsplit("}", 1)[-1].lower()
            if local.startswith("on") or (local == "href" and not value.startswith("#")):
                del parent.attrib[name]
    return ElementTree.tostring(root, encoding="unicode")


def _settings(folder: Path, constant: list[tuple[str, str]]) -> str:
    cards: list[str] = []
    config = _read_json(folder / "config.json")
    if isinstance(config, Mapping) and config:
        cards.append(card("Hyper-parameters", table(list(_rows(config)))))
    if constant:
        cards.append(card("Logged and constant", table(constant)))
    return section("Settings", cards)


def _rows(values: Mapping[str, Any], path: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{path}/{key}" if path else str(key)
        if isinstance(value, Mapping) and value:
            rows += _rows(value, name)
        else:
            rows.append((name, value if isinstance(value, str) else json.dumps(value)))
    return rows
