"""The rows of `cache.py` as one table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

SUBJECTS = {
    "classifier": "classifier",
    "language-model": "language model",
    "build": "",
    "losses": "loss of whole logits with its gradient",
}
"""The parts, with what their rows are of; those of `build` say it themselves."""

COLUMNS = {
    "ms": ("ms", "{:.0f}"),
    "ratio": ("step over labels only", "{:.3f}"),
    "products": ("its products over theirs", "{:.3f}"),
    "read_us": ("read, us a position", "{:.2f}"),
    "bytes": ("bytes a position", "{:.0f}"),
    "throughput": ("build: share of the teacher's throughput", "{:.3f}"),
    "softmax_share": ("with one softmax", "{:.3f}"),
    "begin": ("build: seconds before the first batch", "{:.2f}"),
}


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    columns = {key: c for key, c in COLUMNS.items() if any(key in row for row in rows.values())}
    lines = ["| kept | " + " | ".join(title for title, _ in columns.values()) + " |"]
    lines.append("| --- " * (1 + len(columns)) + "|")
    for name, row in rows.items():
        cells = [form.format(row[key]) if key in row else "" for key, (_, form) in columns.items()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def joined(made: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The rows of all parts by what is kept of which model."""
    rows: dict[str, dict[str, float]] = {}
    for part, about in made.items():
        for name, row in about["rows"].items():
            whole = name if part == "build" else f"{SUBJECTS[part]}: {name}"
            rows.setdefault(whole, {}).update(row)
    return rows


def page(made: Mapping[str, Any]) -> str:
    """One table, and how its parts were run."""
    lines = ["# Caches: `python benchmarks/cache.py`", "", table(joined(made)), ""]
    for part, about in made.items():
        lines.append(f"- {part}: {json.dumps(about['options'])}, on {about['machine']}")
    return "\n".join(lines) + "\n"
