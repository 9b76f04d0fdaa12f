"""What `check` found, as a table for people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from .._base.notebook import html_paragraph, html_table
from .._objective.models import trainable_parameters
from .._objective.objective import Objective
from .._refs.refs import roots
from .._refs.sourced import origins


@dataclass(frozen=True)
class Row:
    """One term: its loss, the shapes that go in, its weight, and the positions that count.

    Attributes:
      term: its name.
      loss: that of its function.
      student, teacher: the shapes of what comes from either side.
      other: of what comes from no model: labels and other fields of the batch, constants.
      weight: a number, a knob, a ref; "metric" of what is not minimised.
      positions: how many of this batch count.
    """

    term: str
    loss: str
    student: str
    teacher: str
    other: str
    weight: str
    positions: str


_SHAPES = ("student", "teacher", "other")


@dataclass(frozen=True)
class CheckReport:
    """What `check` found: the rows of a checked objective. Prints as a table, and is one in a
    notebook.

    Attributes:
      rows: one for each term.
      models: what each model is, in words.
      tokenizers: what two tokenizers differ in, in words.
      notes: what runs and is seldom meant, in words.
    """

    rows: tuple[Row, ...]
    models: tuple[str, ...]
    tokenizers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = self._lines()
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        text = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines]
        rule = "  ".join("-" * w for w in widths)
        below = [*self.models, *self.tokenizers]
        below += ["", *(f"note: {note}" for note in self.notes)] if self.notes else []
        return "\n".join(line.rstrip() for line in [text[0], rule, *text[1:], "", *below])

    def _lines(self) -> list[list[str]]:
        """Head and rows; without the columns of shapes in which no term has anything."""
        heads = [
            name
            for name in (f.name for f in fields(Row))
            if name not in _SHAPES or any(getattr(row, name) for row in self.rows)
        ]
        return [heads, *([getattr(row, h) for h in heads] for row in self.rows)]

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        heads, *rows = self._lines()
        table = html_table(heads, rows) + html_paragraph((*self.models, *self.tokenizers))
        notes = [f"note: {note}" for note in self.notes]
        return table + (html_paragraph(notes) if notes else "")


def model_lines(objective: Objective) -> Iterator[str]:
    """One line for each model: what it is, its size, and what is taken from it; and one for each
    value that a source gives instead of a model."""
    for name, model in objective.models.items():
        module = objective.program.model(name).module
        assert module is not None
        count = sum(p.numel() for p in module.parameters())
        moving = sum(p.numel() for p in trainable_parameters(model).values())
        what = f"ema of {model.of}" if model.kind == "ema" else model.kind
        parameters = f"{count:,} parameters"
        if 0 < moving < count:
            parameters += f", {moving:,} of them trainable"
        read = any(name in (roots(ref) or {name}) for ref in objective.program.plan.refs)
        yield f"{name}: {type(module).__name__}, {what}, {parameters}{'' if read else ', unused'}"
    for part in dict.fromkeys(p for ref in objective.program.plan.refs for p in origins(ref)):
        place = f" ({part.place})" if part.place else ""
        yield f"{part.of!r}: read from the batch, where {part.source} writes it{place}"
