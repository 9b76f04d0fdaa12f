"""A report card as one HTML page: the table, the curves, reliability, layers, examples."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from fkd.metrics import higher_is_better

from .._report.charts import color, number
from .._report.heat_map import heat_map
from .._report.page import card as box
from .._report.page import page, section, tile
from .axes import Plot
from .record import Calibration, ModelCard, Record
from .text import cells, disagreements, percent

_COSTS: dict[str, Callable[[ModelCard], float]] = {
    "parameters": lambda row: float(row.cost.parameters),
    "ms an example": lambda row: row.cost.latency_ms,
}


def card_page(card: Record) -> str:
    """The whole page."""
    sections = [
        section("Measured", [_table(card)]),
        section("Quality over cost", _trades(card)),
        section("Calibration", _reliability(card)),
        section("Layers", [_layers(row) for row in card.students if row.similarity]),
        section(
            "Where they differ most",
            [_worst(card, row) for row in card.students if row.disagreements],
        ),
    ]
    names = ", ".join(row.name for row in card.students)
    subtitle = "; ".join(f"{name}: {text}" for name, text in card.method.items())
    return page(
        title=f"Report card: {names}",
        subtitle=subtitle,
        tiles="".join(_tiles(card)),
        sections="".join(sections),
    )


def _tiles(card: Record) -> list[str]:
    return [one for row in card.students for one in _tiles_of(row, card.teacher)]


def _tiles_of(row: ModelCard, teacher: ModelCard) -> list[str]:
    small, large = row.cost, teacher.cost
    tiles: list[str] = []
    kept = [n for n, q in row.quality.items() if q.kept is not None and higher_is_better(n)]
    for name in kept[:1]:
        note = f"of the teacher's {number(teacher.quality[name].mean)}"
        value = percent(row.quality[name].kept)
        tiles.append(tile(f"{row.name}: {name} kept", value, note, kind="lead"))
    if small.parameters:
        ratio = f"{large.parameters / small.parameters:.1f} x"
        note = f"{number(small.parameters)} parameters"
        tiles.append(tile(f"{row.name}: smaller", ratio, note))
    faster = f"{large.latency_ms / max(small.latency_ms, 1e-9):.1f} x"
    note = f"{number(small.latency_ms)} ms an example"
    tiles.append(tile(f"{row.name}: faster", faster, note))
    if row.agreement is not None:
        note = "first choice is the teacher's"
        tiles.append(tile(f"{row.name}: agreement", percent(row.agreement), note))
    return tiles


def _table(card: Record) -> str:
    head, *rows = cells(card)
    lines = [_cells("th", head), *(_cells("td", row, below=" (") for row in rows)]
    whole = f'<table style="font-size:inherit">{"".join(lines)}</table>'
    style = 'style="overflow-x:auto;font-size:12.5px"'
    return box("All numbers", f"<div {style}>{whole}</div>", wide=True)


def _cells(kind: str, row: list[str], below: str | None = None) -> str:
    """A row; of every cell but the first, what comes after `below` is small and stands below."""
    plain = "white-space:nowrap;width:auto"
    style = f'style="text-align:right;padding:4px 0 4px .6em;{plain}"'
    first, *rest = row
    inner = f'<{kind} style="text-align:left;{plain}">{escape(first)}</{kind}>'
    for cell in rest:
        value, mark, small = cell.partition(below) if below else (cell, "", "")
        under = f"<br><small>{escape(mark.strip() + small)}</small>" if mark else ""
        inner += f"<{kind} {style}>{escape(value)}{under}</{kind}>"
    return f"<tr>{inner}</tr>"


def _trades(card: Record) -> list[str]:
    """Quality over size and over latency, one point for each model."""
    cards: list[str] = []
    for name in card.teacher.quality:
        for title, of in _COSTS.items():
            cards.append(box(f"{name} over {title}", _scatter(card, name, of), note="logarithmic"))
    return cards


def _scatter(card: Record, name: str, of: Callable[[ModelCard], float]) -> str:
    xs = [of(row) for row in card.rows]
    ys = [row.quality[name].mean for row in card.rows]
    ends = [y for row in card.rows for y in (row.quality[name].low, row.quality[name].high)]
    plot = Plot.around(xs, [*ys, *(y for y in ends if y is not None)], log=True)
    parts = [plot.grid()]
    order = sorted(range(len(xs)), key=lambda i: xs[i])
    line = "".join(f"{'M' if k == 0 else 'L'}{plot.at(xs[i], ys[i])}" for k, i in enumerate(order))
    parts.append(f'<path class="faint" style="stroke:var(--ink2)" d="{line}"/>')
    for i, row in enumerate(card.rows):
        quality, stroke = row.quality[name], color(i, max(len(card.rows), 2))
        if quality.low is not None and quality.high is not None:
            bar = f"M{plot.at(xs[i], quality.low)}L{plot.at(xs[i], quality.high)}"
            parts.append(f'<path class="line" style="stroke:{stroke}" d="{bar}"/>')
        parts.append(plot.dot(xs[i], ys[i], stroke, f"{row.name}: {number(ys[i])}"))
    parts.append(plot.names(xs, ys, [row.name for row in card.rows]))
    return plot.drawn("".join(parts), f"{name} of every model")


def _reliability(card: Record) -> list[str]:
    known = [(row, row.calibration) for row in card.rows if row.calibration is not None]
    return [
        box(row.name, _bins(calibration), note=f"ECE {percent(calibration.error)}")
        for row, calibration in known
    ]


def _bins(calibration: Calibration) -> str:
    """Accuracy over confidence; the diagonal is a calibrated model."""
    plot = Plot.around([0.0, 1.0], [0.0, 1.0], log=False, room=0.0)
    diagonal = f"M{plot.at(0.0, 0.0)}L{plot.at(1.0, 1.0)}"
    parts = [plot.grid(), f'<path class="axis" stroke-dasharray="4 4" d="{diagonal}"/>']
    most, bins = max(calibration.count, default=1), len(calibration.count)
    for i, count in enumerate(calibration.count):
        if not count:
            continue
        shade = 0.25 + 0.75 * count / most
        confidence, accuracy = calibration.confidence[i], calibration.accuracy[i]
        title = f"{count} of confidence {confidence:.2f}: {accuracy:.2f} right"
        parts.append(plot.column(i / bins, (i + 1) / bins, accuracy, shade, title))
    return plot.drawn("".join(parts), "accuracy over confidence")


def _layers(row: ModelCard) -> str:
    columns = [str(i) for i in range(len(row.similarity[0]))]
    rows = [str(i) for i in range(len(row.similarity))]
    return box(f"{row.name}: linear CKA", heat_map(row.similarity, rows=rows, columns=columns))


def _worst(card: Record, row: ModelCard) -> str:
    head, *lines = disagreements(card, row)
    cells_of = [_cells("th", head), *(_cells("td", line) for line in lines)]
    return box(row.name, f"<table>{''.join(cells_of)}</table>", wide=True)
