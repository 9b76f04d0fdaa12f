"""The log of a run: a file of JSON lines, TensorBoard, a progress bar.

Everything here takes plain numbers. What is on a device is fetched by the caller, at the
step where it logs; nothing here waits for a device.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from .._base.errors import CheckpointError
from .._base.files import replace_file
from .lines import JsonLines, strict_json
from .progress import Progress, open_progress
from .tensorboard import TensorBoard

_log = logging.getLogger("fkd")

METRICS, CONFIG = "metrics.jsonl", "config.json"


class Throughput(NamedTuple):
    """What was processed since a moment.

    Attributes:
      since: seconds, of any clock that only goes forward.
      examples: how many since then.
      tokens: how many since then; 0 where there are none.

    Example:
      >>> Throughput(since=10.0).add(examples=32).add(examples=32, tokens=640).rates(now=12.0)
      {'examples_per_s': 32.0, 'tokens_per_s': 320.0}
    """

    since: int | float
    examples: int | float = 0
    tokens: int | float = 0

    def add(self, *, examples: int | float = 0, tokens: int | float = 0) -> Throughput:
        """With one more batch."""
        return self._replace(examples=self.examples + examples, tokens=self.tokens + tokens)

    def rates(self, *, now: int | float) -> dict[str, float]:
        """Examples and, if there are any, tokens per second from `since` to `now`."""
        seconds = max(now - self.since, 1e-9)
        counts = {"examples_per_s": self.examples, "tokens_per_s": self.tokens}
        return {name: count / seconds for name, count in counts.items() if count}


class Log:
    """The log of one run, opened by `open_log`. A context manager.

    Attributes:
      run_dir: the folder of the run.
    """

    def __init__(
        self,
        run_dir: Path,
        lines: JsonLines,
        tensorboard: TensorBoard | None,
        progress: Progress | None,
        resume_step: int | None = None,
    ) -> None:
        self.run_dir = run_dir
        self._lines, self._tensorboard, self._progress = lines, tensorboard, progress
        self._resume_step, self._process = resume_step, os.getpid()

    def write(
        self,
        values: Mapping[str, int | float],
        *,
        step: int,
        kind: str = "train",
        epoch: int | float | None = None,
    ) -> None:
        """Log the values of a step, to every place. What a run logs a second time for the step
        that it resumes at stays as it was.

        Args:
          values: numbers by name; "/" in a name groups the charts ("loss/kd").
          step: updates done.
          kind: "train" or "eval".
          epoch: the epoch, if there are epochs.
        """
        record: dict[str, Any] = {"step": step, "time": time.time(), "kind": kind}
        record |= {} if epoch is None else {"epoch": epoch}
        record |= {name: _number(name, value) for name, value in values.items()}
        if step != self._resume_step or kind not in self._lines.repeated:
            self._lines.write(record)
            if self._tensorboard:
                self._tensorboard.write(record)
        self._show(lambda shown: shown.write(record))

    def advance(self, step: int) -> None:
        """Move the progress bar; cheap enough for every step."""
        self._show(lambda shown: shown.advance(step))

    def _show(self, action: Callable[[Progress], None]) -> None:
        """Progress is shown as long as somebody can see it."""
        if self._progress:
            try:
                action(self._progress)
            except (OSError, ValueError) as error:  # a closed terminal, a pipe that nobody reads
                self._progress = None
                _log.warning("progress is not shown any more: %s", error)

    def hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Keep the settings of the run: `config.json`, and TensorBoard's HPARAMS and TEXT."""
        text = json.dumps(strict_json(values), indent=2, default=repr)
        self._keep(CONFIG, text)
        if self._tensorboard:
            self._tensorboard.hyperparameters(json.loads(text))

    def text(self, name: str, text: str) -> None:
        """Keep a text, such as the table of `check`: `<name>.txt`, and TensorBoard's TEXT."""
        self._keep(f"{name}.txt", text)
        if self._tensorboard:
            self._tensorboard.text(name, text)

    def graph(self, svg: str, *, text: str | None = None) -> None:
        """Keep the drawing of the objective: `graph.svg`, and what TensorBoard can show of it.

        Args:
          svg: the drawing. TensorBoard has no place for SVG; the report shows it.
          text: the drawing as text, for TEXT.
        """
        self._keep("graph.svg", svg)
        if self._tensorboard and text is not None:
            self._tensorboard.text("graph", text)

    def _keep(self, name: str, text: str) -> None:
        path = self.run_dir / name
        try:
            replace_file(path, text.encode(errors="backslashreplace"))
        except OSError as error:
            raise CheckpointError(f"log: {path} cannot be written: {error.strerror}.") from error

    def close(self) -> None:
        """End the progress bar and close the files. In a process that was forked inside the run,
        nothing: they are those of the run."""
        if os.getpid() != self._process:
            return
        self._show(lambda shown: shown.close())
        if self._tensorboard:
            self._tensorboard.close()
        self._lines.close()

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_log(
    run_dir: str | os.PathLike[str],
    *,
    tensorboard: bool = True,
    progress: bool = True,
    resume_step: int | None = None,
    total_steps: int | None = None,
) -> Log:
    """Open the log of a run: `metrics.jsonl`, TensorBoard events and a progress bar.

    Args:
      run_dir: made if it is missing.
      tensorboard: write TensorBoard events to `run_dir` (the package is needed then).
      progress: a bar in a terminal or notebook, some plain lines anywhere else.
      resume_step: the step of the checkpoint that the run goes on from. What was logged for
        later steps disappears, here and in TensorBoard. None for a run from the start.
      total_steps: the end of the progress bar, if it is known.

    Raises:
      ImportError: `tensorboard` is asked for and not installed.
      CheckpointError: a file cannot be written.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with open_log(folder, tensorboard=False, progress=False) as log:
      ...         log.write({"loss/kd": 0.5}, step=1, epoch=0)
      ...     sorted(path.name for path in Path(folder).iterdir())
      ['metrics.jsonl']
    """
    folder = Path(run_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"log: {folder} cannot be made: {error.strerror}.") from error
    first_step = 0 if resume_step is None else resume_step + 1
    with contextlib.ExitStack() as opened:
        events = TensorBoard(folder, first_step=first_step) if tensorboard else None
        if events:
            opened.callback(events.close)
        lines = JsonLines(folder / METRICS, resume_step=resume_step)
        opened.pop_all()
    bar = open_progress(total=total_steps, initial=resume_step or 0) if progress else None
    return Log(folder, lines, events, bar, resume_step)


def _number(name: str, value: Any) -> int | float:
    if isinstance(value, (int, float)):
        return value
    raise TypeError(
        f"write: {name} is a {type(value).__name__}; a number is expected. "
        "Fetch tensors first, all at once: torch.stack(values).tolist()."
    )
