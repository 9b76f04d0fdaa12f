"""What else the folder of a run holds, as cards of the report."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from .heat_map import heat_map
from .page import card, section, table


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def similarity(folder: Path) -> str:
    """The heat map of `similarity.json`; empty if it is not there, or damaged."""
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


def objective(folder: Path) -> list[str]:
    """The drawing and the table of the terms, where they are there."""
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


def settings(folder: Path, constant: list[tuple[str, str]]) -> str:
    """The hyper-parameters, and the values that were logged and never moved."""
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
