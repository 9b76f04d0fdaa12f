"""TensorBoard events. The one file that imports tensorboard, when a writer is opened."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from .lines import NOT_VALUES

TRIES = 3  # of writing, before nothing more is written
_log = logging.getLogger("fkd")


class TensorBoard:
    """Writes the events of a run. What cannot be written is said once and left out, since
    `metrics.jsonl` has it, too; the next event is tried with a file of its own, three times.

    Args:
      folder: of the events.
      first_step: TensorBoard drops the points of this step and later ones that an earlier
        process left in the folder, so that a resumed run does not show points twice.
    """

    def __init__(self, folder: Path, *, first_step: int | None = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "open_log: tensorboard is not installed. Install fkd[tensorboard], or pass "
                "tensorboard=False."
            ) from error
        self._new = lambda step=None: SummaryWriter(str(folder), purge_step=step)
        self._writer: Any = None
        self._failures = 0
        self._folder, self._first_step = folder, first_step
        self._write(lambda writer: None)

    def _write(self, action: Callable[[Any], None]) -> None:
        if self._failures == TRIES:
            return
        try:
            if self._writer is None:
                self._writer = self._new(self._first_step)
                self._first_step = None  # another file must not hide what this one shows
            action(self._writer)
            self._writer.flush()  # a killed run keeps what it logged
        except Exception as error:  # its thread passes on whatever it met
            if self._failures == 0:
                _log.warning("TensorBoard events of %s: %s; the run goes on", self._folder, error)
            self._failures += 1
            self._writer = None

    def write(self, record: Mapping[str, Any]) -> None:
        """One scalar for each value; other kinds than "train" are a group of tags."""
        kind = record["kind"]
        prefix = "" if kind == "train" else f"{kind}/"

        def scalars(writer: Any) -> None:
            for name, value in record.items():
                if name not in NOT_VALUES:
                    tag = name if name.startswith(prefix) else prefix + name
                    writer.add_scalar(tag, value, record["step"], record["time"])
            if "epoch" in record:
                writer.add_scalar("epoch", record["epoch"], record["step"], record["time"])

        self._write(scalars)

    def hyperparameters(self, values: Mapping[str, Any]) -> None:
        """A row of HPARAMS and a table in TEXT."""
        from torch.utils.tensorboard.summary import hparams

        flat = dict(_flatten(values))
        simple = {k: v if isinstance(v, (bool, int, float)) else str(v) for k, v in flat.items()}
        rows = "\n".join(f"| {k} | {str(v).replace('|', '&#124;')} |" for k, v in flat.items())

        def settings(writer: Any) -> None:
            for event in hparams(simple, {}):
                # SummaryWriter.add_hparams would open a second run for them.
                writer._get_file_writer().add_summary(event)  # pyright: ignore
            writer.add_text("hyperparameters", f"| name | value |\n| --- | --- |\n{rows}")

        self._write(settings)

    def text(self, name: str, text: str, step: int | None = None) -> None:
        """A text that keeps its columns."""
        indented = "\n".join("    " + line for line in text.splitlines())
        self._write(lambda writer: writer.add_text(name, indented, step))

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._write(lambda writer: writer.close())


def _flatten(values: Any, path: str = "") -> Generator[tuple[str, Any]]:
    if isinstance(values, Mapping) and values:
        for key, value in values.items():
            yield from _flatten(value, f"{path}/{key}" if path else str(key))
    elif not isinstance(values, float) or math.isfinite(values):
        yield path, values
    else:
        yield path, repr(values)
