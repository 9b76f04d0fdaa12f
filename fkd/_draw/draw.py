"""The picture of an objective, as Mermaid text and as a standalone SVG."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from .._base.errors import expect
from .._objective.objective import Objective
from .picture import Box, Picture, picture
from .svg import COLOURS, render


@dataclass(frozen=True)
class Drawing:
    """A drawn objective. A notebook shows it; `save` writes it."""

    picture: Picture

    @functools.cached_property
    def svg(self) -> str:
        """A whole SVG file: no script, no network; follows the reader's light or dark theme."""
        return render(self.picture)

    @functools.cached_property
    def mermaid(self) -> str:
        """A Mermaid flowchart, for Markdown."""
        return _mermaid(self.picture)

    def save(self, path: str | Path) -> Path:
        """Write the drawing to a file whose suffix says what it is: `.svg` or `.mmd`.

        Raises:
          ValueError: another suffix.
        """
        path = Path(path)
        texts = {".svg": lambda: self.svg, ".mmd": lambda: self.mermaid}
        if path.suffix.lower() not in texts:
            raise ValueError(
                f"Drawing.save: {str(path)!r} ends in {path.suffix!r}; .svg or .mmd is expected."
            )
        path.write_text(texts[path.suffix.lower()](), encoding="utf-8")
        return path

    def _repr_svg_(self) -> str:
        return self.svg

    def _repr_html_(self) -> str:
        """For a notebook: as wide as the page, and scrolled when it is wider."""
        return f'<div style="max-width: 100%; overflow: auto">{self.svg}</div>'

    def __repr__(self) -> str:
        return (
            f"<Drawing of {len(self.picture.bands)} terms; .save('objective.svg'), .svg, .mermaid>"
        )


def draw(objective: Objective) -> Drawing:
    """Draw an objective: batch, models, what is taken from each, losses, weights, total.

    Args:
      objective: what is to be drawn. Nothing is run.

    Returns:
      A `Drawing`, with `.svg`, `.mermaid` and `.save(path)`.

    Raises:
      ObjectiveError: the objective has mistakes that show without a batch.

    Example:
      >>> objective = Objective(
      ...     {"kd": term(kl, student.logits, teacher.logits, temperature=4.0)},
      ...     student=trainable(torch.nn.Linear(4, 3)), teacher=frozen(torch.nn.Linear(4, 3)),
      ... )
      >>> draw(objective).svg.startswith("<svg")
      True
      >>> print(draw(objective).mermaid.splitlines()[0])
      flowchart LR
    """
    expect("draw", "objective", objective, Objective, "an fkd.Objective")
    objective.raise_problems()
    return Drawing(picture(objective))


_SHAPES = {
    "batch": ("[(", ")]"),
    "value": ("([", "])"),
    "weight": ("([", "])"),
    "total": ("((", "))"),
}


def _mermaid(shown: Picture) -> str:
    names = {box: f"n{i}" for i, box in enumerate(shown.boxes)}
    grouped = {box: band.group for band in shown.bands for box in (band.loss, band.weight)}
    lines = ["flowchart LR"]
    lines += [f"  {_node(names[i], box)}" for i, box in shown.boxes.items() if not grouped.get(i)]
    groups = dict.fromkeys(g for g in grouped.values() if g)
    for number, group in enumerate(groups):
        lines.append(f'  subgraph g{number}["{_quoted(group)}"]')
        lines += [
            f"    {_node(names[i], shown.boxes[i])}" for i, g in grouped.items() if g == group
        ]
        lines.append("  end")
    lines += [f"  {names[a]} --> {names[b]}" for a, b in shown.lines]
    for tint in dict.fromkeys(box.tint for box in shown.boxes.values()):
        fill, line = COLOURS[tint][:2]
        members = ",".join(names[i] for i, box in shown.boxes.items() if box.tint == tint)
        lines.append(f"  classDef {tint} fill:{fill},stroke:{line},color:#1f2937")
        lines.append(f"  class {members} {tint}")
    return "\n".join(lines) + "\n"


def _node(name: str, box: Box) -> str:
    left, right = _SHAPES.get(box.kind, ("[", "]"))
    return f'{name}{left}"{"<br/>".join(map(_quoted, (box.title, *box.lines)))}"{right}'


def _quoted(text: str) -> str:
    """Text inside Mermaid's quotes, which reads `#35;` as `#`."""
    plain = " ,.-_+()=:/\u00d7"
    return "".join(c if c.isalnum() or c in plain else f"#{ord(c)};" for c in text)
