"""Benchmarks, from `benchmarks/results/*.json`: a table and a chart for each file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent.parent / "benchmarks" / "results"
COLUMNS = {
    "ratio": "time over fkd's", "median_s": "seconds", "ms": "ms", "tokens_per_s": "tokens/s",
    "peak_mib": "peak MiB", "peak_mb": "peak MB", "first_call_s": "first call, s",
    "share_of_floor": "share of the floor",
}  # fmt: skip
HEAD = """\
# Benchmarks

Generated from `benchmarks/results/*`, where each file has its settings, its machine and the
versions; what was *not* measured, and what the numbers mean, is in `benchmarks/README.md`. A ratio is
the time of a variant over that of the first in the same rounds: above 1, the first is faster. Losses
and gradients of all variants are compared before anything is timed.

"""
MOST_ROWS = 16
TITLES = {
    "real_bert": "SST-2 and CoNLL-2003: MiniLM to 3 and 2 layers",
    "real_bert_sources": "1,000 texts of SST-2 and of CoNLL-2003: a teacher live and cached",
}


def pages() -> dict[str, str]:
    """The page and its charts."""
    made: dict[str, str] = {}
    parts = [HEAD, *(_of_students(path) for path in sorted(RESULTS.glob("*.md"), key=_order))]
    for path in sorted(RESULTS.glob("*.json")):
        measured = json.loads(path.read_text(encoding="utf-8"))
        rows = _rows(measured) if isinstance(measured, Mapping) else {}
        if not rows:
            continue
        machine = measured.get("machine", {})
        about = ", ".join(f"{k} {v}" for k, v in measured.get("settings", {}).items() if v)
        parts += [f"## {path.stem}\n", f"{machine.get('device', '')}. {about}.\n"]
        ratios = {n: float(r["ratio"]) for n, r in rows.items() if r.get("ratio")}
        if 1 < len(ratios) <= MOST_ROWS:
            made[f"charts/{path.stem}.svg"] = bars(ratios)
            parts.append(f"![Time over that of the first](charts/{path.stem}.svg)\n")
        folded = len(rows) > MOST_ROWS
        table = _table(rows)
        parts += ['??? note "all rows"\n', *(f"    {x}" for x in table), ""] if folded else table
        parts.append("")
    return {"benchmarks.md": "\n".join(parts), **made}


def _order(path: Path) -> tuple[bool, str]:
    """What students keep comes before what anything costs."""
    return not path.stem.startswith(("real_", "smollm")), path.stem


def _of_students(path: Path) -> str:
    """A report in Markdown, its headings one level lower."""
    text = path.read_text(encoding="utf-8")
    text = text if text.startswith("# ") else f"# {TITLES.get(path.stem, path.stem)}\n\n{text}"
    return re.sub(r"^#(?=#* )", "##", text, flags=re.MULTILINE)


def _rows(measured: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    results = measured.get("results")
    if isinstance(results, Mapping):
        return {str(n): row for n, row in results.items() if isinstance(row, Mapping)}
    if isinstance(results, list):
        return {str(row.get("variant", i)): row for i, row in enumerate(results)}
    return {}


def _table(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    columns = [c for c in COLUMNS if any(isinstance(r.get(c), int | float) for r in rows.values())]
    lines = ["| variant | " + " | ".join(COLUMNS[c] for c in columns) + " |"]
    lines.append("| --- " + "| ---: " * len(columns) + "|")
    for name, row in rows.items():
        cells = [_number(row.get(c)) for c in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _number(value: Any) -> str:
    if not isinstance(value, int | float):
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


LEFT, WIDTH, ROW = 250, 460, 28
STYLE = (
    "<style>text{fill:#24292f;font:13px system-ui,sans-serif}.bar{fill:#a9c7f0}.ours{fill:#3f7fd6}"
    ".one{stroke:#8b949e;stroke-dasharray:3 3}@media(prefers-color-scheme:dark){text{fill:#e6edf3}"
    ".bar{fill:#3b5878}.ours{fill:#5b9bf0}}</style>"
)


def bars(values: Mapping[str, float], *, digits: int = 2) -> str:
    """Horizontal bars from 0, on light and dark pages."""
    top = max(values.values())
    scale = WIDTH / top
    height = ROW * len(values) + 12
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 60} {height}">']
    lines += [STYLE, *_bars(list(values.items()), scale, digits)]
    if top > 1:
        x = LEFT + scale
        lines.append(f'<path class="one" d="M{x:.1f} 2V{height - 4}"/>')
    return "\n".join([*lines, "</svg>", ""])


def _bars(rows: Sequence[tuple[str, float]], scale: float, digits: int) -> list[str]:
    lines: list[str] = []
    for i, (name, value) in enumerate(rows):
        y, kind = 6 + ROW * i, "ours" if "fkd" in name else "bar"
        lines += [
            f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(name[:38])}</text>',
            f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{value * scale:.1f}" height="20" rx="3"/>',
            f'<text x="{LEFT + value * scale + 6:.1f}" y="{y + 15}">{value:.{digits}f}</text>',
        ]
    return lines
