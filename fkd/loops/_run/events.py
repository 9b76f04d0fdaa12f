"""What a run tells its user."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from fkd._base.notebook import html_paragraph, html_table

from .._base.state import State


class Event(NamedTuple):
    """Something that happened in a run.

    Attributes:
      kind: `"start"`, `"log"`, `"evaluate"`, `"save"`, `"epoch"` (an epoch ended), `"end"`.
      step: how many steps are done.
      epoch: the epoch under way, from 0.
      state: after that step. The next step uses it up: copy what you keep.
      values: what was measured, by name.
      message: in words.
      path: the checkpoint of a `"save"`.
      evaluations: at the `"end"`, those of the whole run, as `Result` has them.
    """

    kind: Literal["start", "log", "evaluate", "save", "epoch", "end"]
    step: int
    epoch: int
    state: State
    values: dict[str, float]
    message: str = ""
    path: Path | None = None
    evaluations: tuple[dict[str, float], ...] = ()

    def __repr__(self) -> str:
        said = [f"step={self.step}", f"epoch={self.epoch}"]
        said += [f"values={_numbers(self.values)}"] if self.values else []
        said += [f"message={self.message!r}"] if self.message else []
        return f"Event({self.kind!r}, {', '.join(said)})"


class Result(NamedTuple):
    """What `run` returns.

    Attributes:
      state: after the last step.
      evaluations: the values of each evaluation, with its `"step"`; of a run that was resumed,
        those before as well.
      best: the best value of the chosen metric, None without evaluation.
      best_step: when it was reached.
      message: why the run ended.
    """

    state: State
    evaluations: tuple[dict[str, float], ...]
    best: float | None
    best_step: int | None
    message: str

    def __repr__(self) -> str:
        best = "" if self.best is None else f", best={self.best:.4g} at step {self.best_step}"
        evaluated = f"{len(self.evaluations)} evaluations{best}"
        return f"Result(step={self.state.step}, {evaluated}, message={self.message!r})"

    def _repr_html_(self) -> str:
        names = list(dict.fromkeys(name for one in self.evaluations for name in one))
        rows = ([_number(one.get(name)) for name in names] for one in self.evaluations)
        table = html_table(names, rows) if names else ""
        return table + html_paragraph([repr(self), repr(self.state)])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _numbers(values: Mapping[str, float], *, most: int = 6) -> str:
    """The first values in few digits, and how many more there are."""
    shown = [f"{name}: {value:.4g}" for name, value in list(values.items())[:most]]
    more = [f"{len(values) - most} more"] if len(values) > most else []
    return "{" + ", ".join(shown + more) + "}"
