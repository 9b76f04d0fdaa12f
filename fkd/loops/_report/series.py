"""Numbers over steps: reading, thinning and smoothing them for a chart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .._log.lines import NOT_VALUES

Array = npt.NDArray[np.float64]


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


class History(NamedTuple):
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
    times: list[int | float]
    step: int
    epoch: int | float | None


def history(records: Iterable[Mapping[str, Any]]) -> History:
    """The series of a log. A step that was logged twice counts once, as logged last."""
    points: dict[str, tuple[list[int], list[int | float]]] = {}
    places: dict[str, dict[str, tuple[list[int], list[int | float]]]] = {}  # by kind and name
    times: list[int | float] = []
    last, epoch = 0, None
    for record in records:
        kind, step = str(record.get("kind", "train")), record["step"]
        place = places.setdefault(kind, {})
        last, epoch = max(last, step), record.get("epoch", epoch)
        if "time" in record:
            times.append(record["time"])
        for name, value in record.items():
            if name in NOT_VALUES or not isinstance(value, (int, float)):
                continue
            at = place.get(name)
            if at is None:
                at = place[name] = points.setdefault(_full_name(kind, name), ([], []))
            at[0].append(step)
            at[1].append(value)
    series = {name: _series(name, *at) for name, at in points.items()}
    return History(series, places.keys() - {"train"}, times, last, epoch)


def _full_name(kind: str, name: str) -> str:
    return name if kind == "train" or name.startswith(f"{kind}/") else f"{kind}/{name}"


def _series(name: str, steps: Sequence[int], values: Sequence[int | float]) -> Series:
    # unique keeps the first of equals, and the last one that was logged is wanted.
    unique, index = np.unique(np.array(steps, dtype=np.float64)[::-1], return_index=True)
    return Series(name, unique, np.array(values, dtype=np.float64)[::-1][index])


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


def smooth(series: Series, *, span: int | float, most: int = 2000) -> Series:
    """An exponential moving average over about `span` points, without a bias at the start.

    A long series is first averaged over stretches, to `most` points. What is not a number
    is left out of the averages and stays what it is.
    """
    steps, values, width = _averaged(series, most)
    decay = 1 - 1 / max(span / width, 1.0)
    total = weight = 0.0
    smoothed = np.full_like(values, math.nan)
    for i, value in enumerate(values.tolist()):
        if math.isfinite(value):
            total, weight = decay * total + (1 - decay) * value, decay * weight + (1 - decay)
            smoothed[i] = total / weight
    return Series(series.name, steps, smoothed)


def _averaged(series: Series, most: int) -> tuple[Array, Array, float]:
    """Steps and mean values of stretches, and how many points each has."""
    n = len(series.steps)
    if n <= most:
        return series.steps, series.values, 1.0
    cuts = np.linspace(0, n, most + 1).astype(int)
    finite = np.isfinite(series.values)
    sums = np.add.reduceat(np.where(finite, series.values, 0.0), cuts[:-1])
    counts = np.add.reduceat(finite.astype(np.float64), cuts[:-1])
    values = np.where(counts > 0, sums / np.maximum(counts, 1.0), math.nan)
    return series.steps[cuts[1:] - 1], values, n / most


def running_time(times: Sequence[int | float]) -> tuple[float, list[float]]:
    """Seconds that a run was at work, and the lengths of its interruptions.

    An interruption is a pause between two log points of over a minute and over twenty times
    the usual one.
    """
    pauses = np.diff(np.sort(np.array(times, dtype=np.float64)))
    if not len(pauses):
        return 0.0, []
    long = pauses > max(60.0, 20 * float(np.median(pauses)))
    return float(pauses[~long].sum()), [float(p) for p in pauses[long]]
