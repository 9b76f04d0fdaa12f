"""A report card as a table, and as a model card in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from .._report.charts import number
from .record import Difference, ModelCard, Quality, Record


def cells(card: Record) -> list[list[str]]:
    """Head and rows of the table; columns that nobody has a value for are left out."""
    columns: list[tuple[str, Callable[[ModelCard], str]]] = [("", lambda row: row.name)]
    for name in card.teacher.quality:
        columns.append((name, lambda row, n=name: interval(row.quality[n])))
        columns.append(("kept", lambda row, n=name: percent(row.quality[n].kept)))
        columns.append(("less teacher", lambda row, n=name: difference(row.quality[n])))
    columns += [
        ("agreement", lambda row: percent(row.agreement)),
        (distance(card), lambda row: short(row.divergence)),
        ("ECE", lambda row: percent(row.calibration.error if row.calibration else None)),
        ("NLL", lambda row: short(row.calibration.nll if row.calibration else None)),
        ("parameters", lambda row: number(row.cost.parameters)),
        _in_units(card, _BYTES, lambda row: 1e6 * row.cost.megabytes),
        _in_units(card, _FLOPS, lambda row: 1e9 * row.cost.gflops),
        ("ms", lambda row: number(row.cost.latency_ms)),
        ("p95 ms", lambda row: number(row.cost.latency_p95_ms)),
        ("examples/s", lambda row: number(row.cost.throughput)),
        _in_units(card, _BYTES, lambda row: 1e6 * row.cost.peak_megabytes, "peak "),
    ]
    filled = [(title, [cell(row) for row in card.rows]) for title, cell in columns]
    kept = [(title, column) for title, column in filled if any(column)]
    head = [title for title, _ in kept]
    return [head, *([column[i] for _, column in kept] for i in range(len(card.rows)))]


_BYTES = {"MB": 1e6, "kB": 1e3, "B": 1.0}
_FLOPS = {"GFLOP": 1e9, "MFLOP": 1e6, "kFLOP": 1e3, "FLOP": 1.0}


def _in_units(
    card: Record,
    units: Mapping[str, float],
    amount: Callable[[ModelCard], float],
    title: str = "",
) -> tuple[str, Callable[[ModelCard], str]]:
    """A column in the largest unit of which the largest row has at least 1."""
    most = max(amount(row) for row in card.rows)
    unit = next((u for u, size in units.items() if most >= size), next(iter(units)))
    return f"{title}{unit}", lambda row: number(amount(row) / units[unit])


def distance(card: Record) -> str:
    """What the models are compared by: KL, unless the card says something else."""
    return card.method.get("distance", "KL")


def disagreements(card: Record, row: ModelCard) -> list[list[str]]:
    """Head and rows of the worst examples; without columns that are empty."""
    head = ["example", "teacher", row.name, "label", distance(card)]
    rows = [
        [d.example or f"number {d.index}", *(_plain(x) for x in (d.teacher, d.student, d.label)),
         number(d.divergence)]
        for d in row.disagreements
    ]  # fmt: skip
    kept = [i for i in range(len(head)) if any(line[i] for line in rows)]
    return [[line[i] for i in kept] for line in [head, *rows]]


def _plain(choice: int | None) -> str:
    return "" if choice is None else str(choice)


def percent(value: float | None) -> str:
    """`"98.2 %"`, or nothing."""
    return "" if value is None else f"{100 * value:.1f} %"


def short(value: float | None) -> str:
    """Four digits, or nothing."""
    return "" if value is None else number(value)


def difference(quality: Quality) -> str:
    """`"-0.005 (-0.009 to 0.001)"`, or nothing."""
    return "" if quality.difference is None else interval(quality.difference)


def interval(known: Quality | Difference) -> str:
    """`"0.884 (0.879 to 0.889)"`."""
    text = number(known.mean)
    if known.low is None or known.high is None:
        return text
    return f"{text} ({number(known.low)} to {number(known.high)})"


def table(card: Record) -> str:
    """Columns aligned by spaces, and the method below."""
    rows = cells(card)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [_aligned(row, widths) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    notes = [f"{name}: {text}" for name, text in card.method.items()]
    return "\n".join([*lines, "", *notes])


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = zip(row, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(x.rjust(w) for x, w in rest)]).rstrip()


def model_card(card: Record) -> str:
    """Markdown, as a README of the students."""
    head, *rows = cells(card)
    lines = ["# Report card", "", _line(head), _line(["---"] + ["---:"] * (len(head) - 1))]
    lines += [_line(row) for row in rows]
    lines += ["", *(f"- {name}: {text}" for name, text in card.method.items())]
    for row in card.students:
        if row.disagreements:
            lines += ["", f"## Where {row.name} differs most from its teacher", ""]
            head, *worst = disagreements(card, row)
            lines += [_line(head), _line(["---"] * len(head)), *map(_line, worst)]
    return "\n".join([*lines, ""])


def _line(row: Sequence[str]) -> str:
    plain = (" ".join(cell.replace("|", "\\|").split()) for cell in row)
    return "| " + " | ".join(plain) + " |"
