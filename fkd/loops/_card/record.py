"""The record of a report card: plain numbers, which JSON can hold."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fkd._base.notebook import html_frame

from .._base.files import replace_file


@dataclass(frozen=True)
class Quality:
    """One metric of one model.

    Attributes:
      seeds: its value for every seed.
      mean: over the seeds.
      low, high: an interval of 95 %; None where there is nothing to base it on.
      kept: the mean over that of the teacher; None where the teacher has 0, or nothing.
    """

    seeds: tuple[float, ...]
    mean: float
    low: float | None = None
    high: float | None = None
    kept: float | None = None


@dataclass(frozen=True)
class Calibration:
    """How far probabilities are frequencies.

    Attributes:
      error: the expected calibration error, the mean distance of accuracy and confidence.
      nll: the mean negative log-likelihood of the labels, in nats.
      confidence, accuracy, count: of every bin of the reliability plot.
    """

    error: float
    nll: float
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    count: tuple[int, ...]


@dataclass(frozen=True)
class Cost:
    """What a model costs, on the machine where the card was made.

    Attributes:
      parameters: numbers, shared ones once.
      megabytes: of parameters and buffers, as they are held (10^6 bytes).
      gflops: 10^9 floating-point operations of the products and convolutions for one example.
      latency_ms: the median for one example, of the forward pass alone.
      latency_p95_ms: 95 of 100 are as fast.
      throughput: examples a second, in batches as the loader gives them; the median.
      peak_megabytes: the most memory that a batch's forward pass holds above the model.
    """

    parameters: int
    megabytes: float
    gflops: float
    latency_ms: float
    latency_p95_ms: float
    throughput: float
    peak_megabytes: float


@dataclass(frozen=True)
class Disagreement:
    """An example on which student and teacher differ most.

    Attributes:
      index: its number in the order of the loader (of the positions, where there are several).
      divergence: KL(teacher | student), in nats; or what `distance` says.
      teacher, student: their choices; None of models that choose no class.
      label: the right one, if it is known.
      example: what it is, as `describe` says.
    """

    index: int
    divergence: float
    teacher: int | None
    student: int | None
    label: int | None = None
    example: str = ""


@dataclass(frozen=True)
class ModelCard:
    """One row: the teacher, or one student.

    Attributes:
      name: of the model.
      quality: by metric.
      cost: see `Cost`.
      agreement: how often its first choice is the teacher's; None where nothing is compared.
      divergence: the mean KL(teacher | student), in nats; or the mean of `distance`.
      calibration: None where there are no labels.
      disagreements: the worst first.
      similarity: linear CKA, `[layer][teacher layer]`; empty where no layers are given.
    """

    name: str
    quality: dict[str, Quality]
    cost: Cost
    agreement: float | None = None
    divergence: float | None = None
    calibration: Calibration | None = None
    disagreements: tuple[Disagreement, ...] = ()
    similarity: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class ReportCard:
    """Students beside their teacher; made by `report_card`.

    Printed, it is a table. `json()`, `markdown()` (a model card) and `html()` (one page with
    plots) say the same in other forms; `save(path)` writes the one that the path's suffix names.

    Attributes:
      teacher: its row.
      students: theirs, in the order in which they were given.
      method: how everything was measured, by what was measured.
    """

    teacher: ModelCard
    students: tuple[ModelCard, ...]
    method: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def rows(self) -> tuple[ModelCard, ...]:
        """The teacher, and then the students."""
        return (self.teacher, *self.students)

    def __str__(self) -> str:
        from .text import table

        return table(self)

    def json(self) -> dict[str, Any]:
        """Plain data: dicts, lists, numbers, text."""
        return json.loads(json.dumps(asdict(self)))

    def markdown(self) -> str:
        """A model card."""
        from .text import model_card

        return model_card(self)

    def html(self) -> str:
        """One page that needs no other file."""
        from .plots import card_page

        return card_page(self)

    def _repr_html_(self) -> str:
        return html_frame(self.html())

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it.

        Args:
          path: ends in `.json`, `.md`, `.html` or `.txt`.

        Raises:
          ValueError: another suffix.
        """
        file = Path(path)
        forms = {
            ".json": lambda: json.dumps(self.json(), indent=2) + "\n",
            ".md": self.markdown,
            ".html": self.html,
            ".txt": lambda: f"{self}\n",
        }
        if file.suffix not in forms:
            raise ValueError(
                f"save: {file} ends in {file.suffix or 'nothing'!r}; one of "
                f"{', '.join(forms)} is expected."
            )
        replace_file(file, forms[file.suffix]().encode())
        return file
