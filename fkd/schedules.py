"""Schedules: values that move during a run, `step -> float`.

Any weight, temperature or other numeric knob of a term may be a schedule, and so may the
learning rate (as a factor). A schedule is an immutable value that prints as the code that
made it; a plain function of the step does as well.

Example:
  >>> temperature = linear(8.0, 2.0, steps=100)
  >>> temperature(0), temperature(50), temperature(1000)
  (8.0, 5.0, 2.0)
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Scheduled: TypeAlias = Callable[[int], float]


@dataclass(frozen=True)
class Schedule:
    """A function of the step that remembers how it was made."""

    name: str
    args: tuple[object, ...]
    fn: Scheduled

    def __call__(self, step: int) -> float:
        """The value at a step."""
        return float(self.fn(int(step)))

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(map(repr, self.args))})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))


def constant(value: float) -> Schedule:
    """The same value at every step."""
    return Schedule("constant", (value,), lambda step: value)


def linear(start: float, end: float, steps: int) -> Schedule:
    """From `start` at step 0 straight to `end` at step `steps`, and `end` from then on."""
    _positive("linear", steps)
    return Schedule(
        "linear", (start, end, steps), lambda step: start + (end - start) * _progress(step, steps)
    )


def cosine(start: float, end: float, steps: int) -> Schedule:
    """From `start` to `end` in half a cosine, and `end` from then on (arXiv:1608.03983).

    Example:
      >>> cosine(1.0, 0.0, steps=10)(5)
      0.5
    """
    _positive("cosine", steps)

    def value(step: int) -> float:
        if step >= steps:
            return end
        return end + (start - end) * 0.5 * (1 + math.cos(math.pi * _progress(step, steps)))

    return Schedule("cosine", (start, end, steps), value)


def exponential(start: float, end: float, steps: int) -> Schedule:
    """From `start` to `end` by a constant factor a step, and `end` from then on.

    Both must be positive.

    Example:
      >>> exponential(1.0, 0.01, steps=2)(1)
      0.1
    """
    _positive("exponential", steps)
    if start <= 0 or end <= 0:
        raise ValueError(
            f"exponential: start {start} and end {end} must be positive. Use linear to reach 0."
        )

    def value(step: int) -> float:
        return end if step >= steps else start * (end / start) ** _progress(step, steps)

    return Schedule("exponential", (start, end, steps), value)


def warmup(steps: int, then: float | Scheduled = 1.0) -> Schedule:
    """From 0 linearly up to `then` in `steps` steps, and `then` (counted from there) after.

    Example:
      >>> rate = warmup(10, cosine(1.0, 0.0, steps=90))
      >>> rate(0), rate(5), rate(10), rate(100)
      (0.0, 0.5, 1.0, 0.0)
    """
    _positive("warmup", steps)

    def after(step: int) -> float:
        return then(step) if callable(then) else then

    def value(step: int) -> float:
        return after(0) * step / steps if step < steps else after(step - steps)

    return Schedule("warmup", (steps, then), value)


def piecewise(values: Mapping[int, float]) -> Schedule:
    """A staircase: the value of the last boundary that the step has reached.

    Args:
      values: `{first step: value}`; the first boundary must be 0.

    Example:
      >>> [piecewise({0: 1.0, 10: 0.1})(step) for step in (0, 9, 10)]
      [1.0, 1.0, 0.1]
    """
    steps = sorted(values)
    if not steps or steps[0] != 0:
        raise ValueError(f"piecewise: boundaries {steps}; the first must be 0.")
    return Schedule(
        "piecewise",
        (dict(values),),
        lambda step: values[steps[max(bisect.bisect_right(steps, step) - 1, 0)]],
    )


def join(schedules: Sequence[Scheduled], boundaries: Sequence[int]) -> Schedule:
    """One schedule after another; each counts from the step at which it begins.

    Args:
      schedules: n schedules.
      boundaries: the n - 1 steps, increasing, at which the next one takes over.

    Example:
      >>> join([linear(0.0, 1.0, 10), constant(0.5)], boundaries=[10])(10)
      0.5
    """
    starts = [0, *boundaries]
    increasing = all(a < b for a, b in itertools.pairwise(starts))
    if len(starts) != len(schedules) or not increasing:
        raise ValueError(
            f"join: {len(schedules)} schedules and boundaries {list(boundaries)}; "
            f"{max(len(schedules) - 1, 0)} increasing boundaries above 0 are expected."
        )

    def value(step: int) -> float:
        i = max(bisect.bisect_right(starts, step) - 1, 0)
        return schedules[i](step - starts[i])

    return Schedule("join", (list(schedules), list(boundaries)), value)


def _progress(step: int, steps: int) -> float:
    return min(max(step / steps, 0.0), 1.0)


def _positive(name: str, steps: int) -> None:
    if steps <= 0:
        raise ValueError(f"{name}: steps is {steps}; a positive number of steps is expected.")
