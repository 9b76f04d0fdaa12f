"""A run as one page: what a person looks at to decide whether a distillation works."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fkd.metrics import higher_is_better as by_name
from fkd.parallel._world import writes

from .._base.files import replace_file
from .._base.waiting import duration
from .._log.lines import read_log
from .chart_card import chart_card
from .charts import number, step_range
from .folder_cards import objective, read_json, settings_card, similarity
from .members import (
    Lead,
    Members,
    lead,
    leading,
    member_chart,
    member_section,
    member_tiles,
    members_of,
    shared_name,
)
from .page import page, section, tile
from .series import History, Series, history, running_time

_log = logging.getLogger("fkd")


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
    `similarity.json` (CKA between the layers). The page of a sweep begins with its members beside
    each other, by the last values of one metric.

    Args:
      run_dir: the folder of the run.
      out: the file to write; `<run_dir>/report.html` if None.
      metric: what "best" goes by, such as "eval/accuracy". If None: what `fit(best=...)` went by,
        and where that was the loss, the first metric of the evaluations that is not a loss. Of a
        sweep, that of any member ("eval/T4/accuracy") or of all ("eval/accuracy").
      higher_is_better: whether the best metric is the highest. If None: as `fit` had it, if it
        went by this metric; else by its name.

    Of several processes that train together, the first one writes it.

    Returns:
      The path of the page.

    Raises:
      ValueError: there is no such folder, or no such metric in it, or its name does not say
        whether higher is better.
    """
    folder = Path(run_dir)
    if not folder.is_dir():
        raise ValueError(f"report: {folder} is not a folder; the folder of a run is expected.")
    lines = folder / "metrics.jsonl"
    run = history(_records(lines))
    members = members_of(run.series)
    known = [*run.series, *(() if members is None else members.shared)]
    if metric is not None and metric not in known:
        there = ", ".join(known) or "nothing"
        raise ValueError(f"report: metric {metric!r} was not logged; there is {there}.")
    best = _best(folder, run)
    if higher_is_better is None and best is not None and metric in (None, best.metric):
        metric, higher_is_better = best
    if metric is not None and higher_is_better is None and by_name(metric) is None:
        raise ValueError(
            f"report: the name metric={metric!r} does not say whether higher or lower is better. "
            "Say it: higher_is_better=True, as for an accuracy, or False, as for an error."
        )
    path = Path(out) if out is not None else folder / "report.html"
    chosen: Lead | None = None
    if members is not None:
        asked = None if metric is None else shared_name(metric, members)
        chosen = lead(members, run.kinds, asked, higher_is_better)
    text = page(
        title=folder.resolve().name,
        subtitle=_subtitle(run),
        tiles=_tiles(run, metric or _metric(run), higher_is_better, members, chosen),
        sections=_sections(folder, run, members, chosen),
    )
    if writes():
        replace_file(path, text.encode("utf-8", errors="replace"))
    return path


def _records(path: Path) -> list[dict[str, Any]]:
    """The log, as far as it can be read; a page about what else is there is of use, too."""
    if not path.exists():
        return []
    try:
        return list(read_log(path))
    except OSError as error:
        _log.warning("report: %s cannot be read: %s", path, error.strerror)
        return []


def _subtitle(run: History) -> str:
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


class _Best(NamedTuple):
    """What the best of a run goes by."""

    metric: str
    higher: bool | None


def _best(folder: Path, run: History) -> _Best | None:
    """What `fit` went by, unless it was the loss, or nothing says so."""
    config = read_json(folder / "config.json")
    if not isinstance(config, Mapping) or config.get("best") == "loss/total":
        return None
    metric, higher = f"eval/{config.get('best')}", config.get("higher_is_better")
    if metric not in run.series:
        return None
    return _Best(metric, higher if isinstance(higher, bool) else None)


def _metric(run: History) -> str | None:
    names = [n for n in run.series if n.split("/")[0] in run.kinds]
    return next((n for n in names if "loss" not in n), next(iter(names), None))


def _tiles(
    run: History,
    metric: str | None,
    higher_is_better: bool | None,
    members: Members | None,
    chosen: Lead | None,
) -> str:
    tiles: list[str] = []
    total = run.series.get("loss/total") or run.series.get("loss")
    if members is not None:
        tiles += member_tiles(members, chosen)
    else:
        if metric and len(run.series[metric].finite):
            tiles += _metric_tiles(run.series[metric], higher_is_better)
        if total is not None:
            tiles.append(_loss_tile(total))
    if run.times:
        epochs = f"epoch {run.epoch:g}" if run.epoch is not None else ""
        tiles.append(tile("Steps", f"{run.step:,}", epochs))
        tiles.append(tile("Time at work", duration(running_time(run.times)[0])))
    for name, what in (("examples_per_s", "Examples/s"), ("tokens_per_s", "Tokens/s")):
        if name in run.series and len(run.series[name].finite):
            tiles.append(tile(what, number(float(np.median(run.series[name].finite))), "median"))
    if "skipped" in run.series:
        count = run.series["skipped"].values[-1]
        tiles.append(tile("Skipped updates", f"{count:,.0f}", kind="warn" if count else ""))
    bad = sum(len(s.values) - len(s.finite) for s in run.series.values())
    if bad:
        tiles.append(tile("Values not finite", f"{bad:,}", "marked with a cross", kind="warn"))
    return "".join(tiles)


def _metric_tiles(series: Series, higher_is_better: bool | None) -> list[str]:
    name = series.name
    higher = by_name(name) if higher_is_better is None else higher_is_better
    ends = {"Highest": True, "Lowest": False} if higher is None else {"Best": higher}
    tiles: list[str] = []
    for word, highest in ends.items():
        worst = -math.inf if highest else math.inf
        values = np.where(np.isfinite(series.values), series.values, worst)
        at = int(values.argmax() if highest else values.argmin())
        where = f"at step {series.steps[at]:,.0f}"
        tiles.append(tile(f"{word} {name}", number(values[at]), where, kind="lead"))
    last = f"at step {series.steps[-1]:,.0f}"
    return [*tiles, tile(f"Last {name}", number(series.values[-1]), last)]


def _loss_tile(total: Series) -> str:
    start = f"{number(float(total.finite[0]))} at the start" if len(total.finite) else ""
    last = float(total.values[-1])
    return tile("Total loss", number(last), start, kind="" if math.isfinite(last) else "warn")


def _sections(folder: Path, run: History, members: Members | None, chosen: Lead | None) -> str:
    constant: list[tuple[str, str]] = []
    groups = _groups(run.series if members is None else members.others, run.kinds, constant)
    steps = step_range(list(run.series.values())) if run.series else (0.0, 1.0)
    parts: dict[str, list[str]] = {"Losses": [], "Evaluation": [], "Training": [], "Speed": []}
    if members is not None:
        shown = [] if chosen is None else leading(members, chosen)
        for name in (n for n in members.shared if n not in shown):
            if not _stays(members, name, run.kinds, constant):
                parts[_part(name, run.kinds)].append(member_chart(members, name, steps))
    for group, some in groups.items():
        parts[_part(group, run.kinds)].append(chart_card(group, some, steps))
    nothing = "" if run.series else '<p class="card nothing">There are no log points to draw.</p>'
    layers = similarity(folder)
    sections = [section(title, cards) for title, cards in parts.items()]
    sections.insert(2, section("Layers", [layers] if layers else []))
    if members is not None:
        sections.insert(0, member_section(members, chosen, run.kinds, steps))
    sections += [section("Objective", objective(folder)), settings_card(folder, constant)]
    return nothing + "".join(sections)


def _groups(
    every: Mapping[str, Series], kinds: set[str], constant: list[tuple[str, str]]
) -> dict[str, list[Series]]:
    """Which series are in one chart; what never moved is added to `constant`."""
    groups: dict[str, list[Series]] = {}
    for name, series in every.items():
        evaluated = name.split("/")[0] in kinds
        group = name.rsplit("/", 1)[0] if "/" in name else name
        if evaluated and "loss" not in name:
            group = name  # metrics have scales of their own
        elif _part(group, kinds) == "Training" and _constant(series):
            constant.append((name, number(float(series.values[0]))))
            continue
        groups.setdefault(group, []).append(series)
    return groups


def _stays(members: Members, name: str, kinds: set[str], constant: list[tuple[str, str]]) -> bool:
    """Whether a value never moves: it is in the table of the members where these differ in it,
    and is else added to `constant`."""
    if name == "finite":  # said by "skipped"
        return True
    series = list(members.shared[name].values())
    if _part(name, kinds) != "Training" or not all(map(_constant, series)):
        return False
    values = {number(float(s.values[0])) for s in series}
    if len(values) == 1:
        constant.append((name, values.pop()))
    return True


def _constant(series: Series) -> bool:
    return len(series.values) > 1 and bool((series.values == series.values[0]).all())


def _part(group: str, kinds: set[str]) -> str:
    top = group.split("/")[0]
    if top in kinds or "agreement" in group:
        return "Evaluation"
    return "Losses" if top == "loss" else "Speed" if top.endswith("_per_s") else "Training"
