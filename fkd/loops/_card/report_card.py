"""A report card: a record, and the forms in which it is shown and saved."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fkd._base.notebook import html_frame

from .._base.files import read_bytes, replace_file
from .plots import card_page
from .record import Record
from .stored import record_of
from .text import model_card, table


@dataclass(frozen=True)
class ReportCard(Record):
    """Students beside their teacher; made by `report_card`.

    Printed, it is a table. `json()`, `markdown()` (a model card) and `html()` (one page with
    plots) say the same in other forms; `save(path)` writes the one that the path's suffix names,
    and `ReportCard.load` reads the JSON, so that a card can be shown again without its models.

    Attributes:
      teacher: its row.
      students: theirs, in the order in which they were given.
      method: how everything was measured, by what was measured.
    """

    def __str__(self) -> str:
        return table(self)

    def json(self) -> dict[str, Any]:
        """Plain data: dicts, lists, numbers, text."""
        return json.loads(json.dumps(asdict(self)))

    def markdown(self) -> str:
        """A model card."""
        return model_card(self)

    def html(self) -> str:
        """One page that needs no other file."""
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

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ReportCard:
        """A card that was saved as `.json`.

        Args:
          path: of the file.

        Raises:
          ValueError: it is no card.
          OSError: it cannot be read.

        Example:
          >>> import fkd.loops, tempfile
          >>> data = [torch.randn(8, 4) for _ in range(2)]
          >>> card = fkd.loops.report_card(
          ...     torch.nn.Linear(4, 3), {"small": torch.nn.Linear(4, 3)}, data, labels=None
          ... )
          >>> path = card.save(f"{tempfile.mkdtemp()}/card.json")
          >>> str(fkd.loops.ReportCard.load(path)) == str(card)
          True
        """
        try:
            record = record_of(json.loads(read_bytes(Path(path))))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"load: {path} is no report card: {type(error).__name__}: {error}. What "
                "card.save('card.json') writes is expected."
            ) from None
        return cls(record.teacher, record.students, record.method)
