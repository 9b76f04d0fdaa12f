"""How values show in a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def html_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; texts are escaped."""
    lines = [_cells("th", heads), *(_cells("td", row) for row in rows)]
    return f"<table>{''.join(lines)}</table>"


def html_paragraph(lines: Iterable[str]) -> str:
    """Lines one below the other; texts are escaped."""
    return f"<p>{'<br>'.join(map(html.escape, lines))}</p>"


def html_frame(page: str) -> str:
    """A whole page in a frame of its own, whose styles stay inside."""
    style = "width: 100%; height: 40em; border: 0"
    return f'<iframe sandbox srcdoc="{html.escape(page)}" style="{style}"></iframe>'


def _cells(tag: str, texts: Sequence[str]) -> str:
    cells = (f'<{tag} style="text-align: left">{html.escape(text)}</{tag}>' for text in texts)
    return f"<tr>{''.join(cells)}</tr>"
