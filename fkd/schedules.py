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
from functools import partial
from numbers import Real
from typing import TypeAlias

from fkd._base.errors import expect

Scheduled: TypeAlias = Callable[[int], float]


@dataclass(frozen=True)
class Schedule:
    """A function of the step that remembers how it was made, as a value: it prints as code,
    compares by it, and can be pickled (if the functions in it can).

    Attributes:
      name: the function of this file that made it.
      args: what that was given.
      fn: the value at a step.
    """

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
    return Schedule("constant", (value,), partial(_constant, value))


def linear(start: float, end: float, steps: int) -> Schedule:
    """From `start` at step 0 straight to `end` at step `steps`, and `end` from then on."""
    _positive("linear", steps)
    return Schedule("linear", (start, end, steps), partial(_linear, start, end, steps))


def cosine(start: float, end: float, steps: int) -> Schedule:
    """From `start` to `end` in half a cosine, and `end` from then on (arXiv:1608.03983).

    Example:
      >>> cosine(1.0, 0.0, steps=10)(5)
      0.5
    """
    _positive("cosine", steps)
    return Schedule("cosine", (start, end, steps), partial(_cosine, start, end, steps))


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
    return Schedule("exponential", (start, end, steps), partial(_exponential, start, end, steps))


def warmup(steps: int, then: float | Scheduled = 1.0) -> Schedule:
    """From 0 linearly up to `then` in `steps` steps, and `then` (counted from there) after.

    Example:
      >>> rate = warmup(10, cosine(1.0, 0.0, steps=90))
      >>> rate(0), rate(5), rate(10), rate(100)
      (0.0, 0.5, 1.0, 0.0)
    """
    _positive("warmup", steps)
    return Schedule("warmup", (steps, then), partial(_warmup, steps, then))


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
    kept = dict(values)
    return Schedule("piecewise", (kept,), partial(_piecewise, kept, steps))


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
    parts = list(schedules)
    return Schedule("join", (parts, list(boundaries)), partial(_join, parts, starts))


def _constant(value: float, step: int) -> float:
    del step
    return value


@dataclass(frozen=True)
class Turn:
    """Whether it is a model's turn at a step; see `turns`."""

    start: int
    length: int
    period: int

    def __call__(self, step: int) -> bool:
        """Whether it is."""
        return self.start <= int(step) % self.period < self.start + self.length


def turns(**steps: int) -> dict[str, Turn]:
    """Models that are updated in turn, each for some steps: for `train_step(when=...)`.

    Args:
      steps: how many steps each model has before the next one's turn, in this order.

    Example:
      >>> when = turns(student=2, generator=1)
      >>> [name for step in range(4) for name in when if when[name](step)]
      ['student', 'student', 'generator', 'student']
    """
    for name, count in steps.items():
        if count < 1:
            raise ValueError(f"turns: {name} has {count} steps; at least 1 is expected.")
    ends = list(itertools.accumulate(steps.values()))
    return {
        name: Turn(end - steps[name], steps[name], ends[-1])
        for name, end in zip(steps, ends, strict=True)
    }


def _linear(start: float, end: float, steps: int, step: int) -> float:
    return start + (end - start) * _progress(step, steps)


def _cosine(start: float, end: float, steps: int, step: int) -> float:
    if step >= steps:
        return end
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * _progress(step, steps)))


def _exponential(start: float, end: float, steps: int, step: int) -> float:
    return end if step >= steps else start * (end / start) ** _progress(step, steps)


def _warmup(steps: int, then: float | Scheduled, step: int) -> float:
    first = step < steps
    after = then(0 if first else step - steps) if callable(then) else then
    return after * step / steps if first else after


def _piecewise(values: Mapping[int, float], steps: Sequence[int], step: int) -> float:
    return values[steps[max(bisect.bisect_right(steps, step) - 1, 0)]]


def _join(schedules: Sequence[Scheduled], starts: Sequence[int], step: int) -> float:
    i = max(bisect.bisect_right(starts, step) - 1, 0)
    return schedules[i](step - starts[i])


def _progress(step: int, steps: int) -> float:
    return min(max(step / steps, 0.0), 1.0)


def _positive(name: str, steps: int) -> None:
    expect(name, "steps", steps, Real, "a positive number of steps")
    if not steps >= 1:
        share = " A share of a run is int(share * steps)." if steps > 0 else ""
        raise ValueError(
            f"{name}: steps is {steps}; a positive number of steps is expected.{share}"
        )
