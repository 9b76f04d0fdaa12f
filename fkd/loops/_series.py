"""Numbers over steps: reading, thinning and smoothing them for a chart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_NOT_VALUES = ("step", "time", "kind", "epoch")


class Series(NamedTuple):
    """A value over the steps of a run.

    Attributes:
      name: as logged.
      steps: `[n]`, increasing.
      values: `[n]`, may be nan or inf.
    """

    name: str
    steps: Array
    values: Array

    @property
    def finite(self) -> Array:
        """The values that are numbers."""
        return self.values[np.isfinite(self.values)]


class Run(NamedTuple):
    """What the log of a run says.

    Attributes:
      series: by name, in order of first appearance. Values of another kind than "train" have
        that kind in front ("eval/accuracy").
      kinds: other than "train".
      times: of the log points, in seconds since 1970.
      step: the last one.
      epoch: the last one, if there are epochs.
    """

    series: dict[str, Series]
    kinds: set[str]
    times: list[float]
    step: int
    epoch: float | None


def collect(records: Iterable[Mapping[str, Any]]) -> Run:
    """The series of a log. A step that was logged twice counts once, as logged last."""
    points: dict[str, dict[float, float]] = {}
    kinds: set[str] = set()
    times: list[float] = []
    step, epoch = 0, None
    for record in records:
        kind = str(record.get("kind", "train"))
        prefix = "" if kind == "train" else f"{kind}/"
        kinds |= {kind} - {"train"}
        step, epoch = max(step, record["step"]), record.get("epoch", epoch)
        if "time" in record:
            times.append(record["time"])
        for name, value in record.items():
            if name not in _NOT_VALUES and isinstance(value, (int, float)):
                full = name if name.startswith(prefix) else prefix + name
                points.setdefault(full, {})[record["step"]] = float(value)
    series = {name: _series(name, at) for name, at in points.items()}
    return Run(series, kinds, times, step, epoch)


def _series(name: str, points: Mapping[float, float]) -> Series:
    steps = np.array(sorted(points), dtype=np.float64)
    return Series(name, steps, np.array([points[s] for s in steps.tolist()], dtype=np.float64))


def thin(series: Series, *, most: int = 400) -> Series:
    """At most about `most` points; of each stretch the lowest and the highest stay.

    What is not a number stays, too, so that a chart shows where it was.
    """
    n = len(series.steps)
    if n <= most:
        return series
    keep = {0, n - 1}
    finite = np.isfinite(series.values)
    for stretch in np.array_split(np.arange(n), most // 2):
        numbers = stretch[finite[stretch]]
        if len(numbers):
            values = series.values[numbers]
            keep |= {int(numbers[values.argmin()]), int(numbers[values.argmax()])}
        if len(numbers) < len(stretch):
            keep.add(int(stretch[~finite[stretch]][0]))
    index = sorted(keep)
    return Series(series.name, series.steps[index], series.values[index])


def smooth(series: Series, *, span: float) -> Series:
    """An exponential moving average over about `span` points, without a bias at the start.

    Stays what it is where a value is not a number.
    """
    decay = 1 - 1 / max(span, 1.0)
    total = weight = 0.0
    smoothed = np.full_like(series.values, math.nan)
    for i, value in enumerate(series.values.tolist()):
        if math.isfinite(value):
            total, weight = decay * total + (1 - decay) * value, decay * weight + (1 - decay)
            smoothed[i] = total / weight
    return Series(series.name, series.steps, smoothed)


def running_time(times: Sequence[float]) -> tuple[float, list[float]]:
    """Seconds that a run was at work, and the lengths of its interruptions.

    An interruption is a pause between two log points of over a minute and over twenty times
    the usual one.
    """
    pauses = np.diff(np.sort(np.array(times, dtype=np.float64)))
    if not len(pauses):
        return 0.0, []
    long = pauses > max(60.0, 20 * float(np.median(pauses)))
    return float(pauses[~long].sum()), [float(p) for p in pauses[long]]
