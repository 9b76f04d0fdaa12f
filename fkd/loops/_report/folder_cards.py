"""What else the folder of a run holds, as cards of the report."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from .._base.files import read_bytes
from .drawing import drawing as read_drawing
from .heat_map import heat_map
from .page import card, section, table

MOST_LAYERS, DEEPEST = 500, 20  # of what is drawn


def read_json(path: Path) -> Any:
    """What a file says; None if it is not there, or not JSON."""
    try:
        return json.loads(read_bytes(path))
    except (OSError, ValueError, RecursionError):
        return None


def similarity(folder: Path) -> str:
    """The heat map of `similarity.json`; empty if it is not there, or damaged."""
    try:
        table_of = read_json(folder / "similarity.json")
        rows = [str(x) for x in table_of["student_layers"]]
        columns = [str(x) for x in table_of["teacher_layers"]]
        values = [[math.nan if x is None else float(x) for x in row] for row in table_of["values"]]
        if [len(row) for row in values] != [len(columns)] * len(rows) or not rows or not columns:
            raise ValueError
    except (TypeError, KeyError, ValueError, OverflowError, RecursionError):
        return ""
    if max(len(rows), len(columns)) > MOST_LAYERS:
        return ""
    text = (
        '<p class="sub">Linear CKA of the hidden states: 1 where a student layer holds the same '
        "as a teacher layer, up to a rotation. A frame marks the most alike teacher layer.</p>"
    )
    drawing = heat_map(values, rows=rows, columns=columns)
    return card("Similarity of student and teacher layers", text + drawing, wide=True)


def objective(folder: Path) -> list[str]:
    """The drawing and the table of the terms, where they are there."""
    cards: list[str] = []
    graph = read_drawing(folder / "graph.svg")
    if graph:
        cards.append(card("Graph", f'<div class="drawing">{graph}</div>', wide=True))
    with contextlib.suppress(OSError):
        text = read_bytes(folder / "check.txt").decode(errors="replace")
        cards.append(card("Terms", f"<pre>{escape(text)}</pre>", wide=True))
    return cards


def settings_card(folder: Path, constant: list[tuple[str, str]]) -> str:
    """The hyper-parameters, and the values that were logged and never moved."""
    cards: list[str] = []
    config = read_json(folder / "config.json")
    if isinstance(config, Mapping) and config:
        cards.append(card("Hyper-parameters", table(list(_rows(config)))))
    if constant:
        cards.append(card("Logged and constant", table(constant)))
    return section("Settings", cards)


def _rows(values: Mapping[str, Any], path: str = "", depth: int = 0) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{path}/{key}" if path else str(key)
        if isinstance(value, Mapping) and value and depth < DEEPEST:
            rows += _rows(value, name, depth + 1)
        else:
            rows.append((name, value if isinstance(value, str) else _text(value)))
    return rows


def _text(value: Any) -> str:
    try:
        return json.dumps(value)
    except (RecursionError, ValueError):
        return "(nested too deep to be shown)"
