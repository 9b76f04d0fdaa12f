"""How far a run is, and how fast, in words."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from .._base.waiting import duration
from .lines import NOT_VALUES


class Pace:
    """The steps of a run over the time since this was made.

    Args:
      total: updates of the whole run, if known.
      initial: updates that were done before.
    """

    def __init__(self, *, total: int | None = None, initial: int = 0) -> None:
        self.total, self._initial = total, initial
        self._started = time.monotonic()

    def text(self, step: int) -> str:
        """`step 30/120 (25 %), 1 min 5 s left, 1.38 step/s`, as far as it is known."""
        rate = (step - self._initial) / max(self._seconds(), 1e-9)
        text = f"step {step}"
        if self.total:
            text += f"/{self.total} ({100 * step / self.total:.0f} %)"
            if rate and step < self.total:
                text += f", {duration((self.total - step) / rate)} left"
        return text + (f", {rate:.3g} step/s" if rate else "")

    def ended(self, step: int) -> str:
        """The same at the end, with the time that it took."""
        return f"{self.text(step)}  done in {duration(self._seconds())}"

    def _seconds(self) -> float:
        return time.monotonic() - self._started


def summary(record: Mapping[str, Any]) -> str:
    """The values that a person wants at a glance: the total loss, or an evaluation's metrics."""
    if record["kind"] == "train":
        names = [n for n in ("loss/total", "loss") if n in record]
    else:
        names = [n for n in record if n not in NOT_VALUES]
        names = sorted(names, key=_rank)[:6]
    return "  ".join(f"{name.removeprefix('eval/')} {record[name]:.4g}" for name in names)


def _rank(name: str) -> int:
    """Metrics first, then the total loss, then the terms."""
    return ("loss/" in name) + ("loss/" in name and not name.endswith("loss/total"))
