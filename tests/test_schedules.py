"""Laws of schedules: ends, monotony, composition, and how they print."""

from __future__ import annotations

import copy
import math
import pickle

import pytest

from fkd import schedules
from fkd.schedules import constant, cosine, exponential, join, linear, piecewise, warmup

RAMPS = [linear, cosine, exponential]


@pytest.mark.parametrize("ramp", RAMPS)
def test_a_ramp_starts_and_ends_where_it_says_and_stays_there(ramp):
    schedule = ramp(8.0, 2.0, 100)
    assert schedule(0) == 8.0
    assert schedule(100) == schedule(101) == schedule(10**9) == 2.0
    assert schedule(-5) == pytest.approx(8.0)


@pytest.mark.parametrize("ramp", RAMPS)
@pytest.mark.parametrize("ends", [(8.0, 2.0), (0.5, 3.0)])
def test_a_ramp_is_monotone(ramp, ends):
    values = [ramp(*ends, 50)(step) for step in range(60)]
    assert values == sorted(values, reverse=ends[0] > ends[1])


def test_shapes_against_their_formulas():
    assert linear(0.0, 1.0, 8)(2) == 0.25
    assert cosine(1.0, 0.0, 8)(2) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert exponential(1.0, 1e-4, 8)(2) == pytest.approx(0.1)


def test_warmup_reaches_what_follows_and_counts_from_there():
    schedule = warmup(4, linear(2.0, 0.0, 10))
    assert [schedule(s) for s in range(5)] == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert schedule(9) == linear(2.0, 0.0, 10)(5)
    assert warmup(4, 3.0)(100) == 3.0


def test_warmup_of_a_plain_function():
    assert warmup(2, lambda step: 10.0 + step)(3) == 11.0


def test_join_counts_each_from_where_it_begins():
    schedule = join([linear(0.0, 1.0, 10), constant(7.0), linear(1.0, 0.0, 2)], [10, 20])
    assert [schedule(s) for s in (0, 5, 9, 10, 19, 20, 21, 22)] == [
        *(0.0, 0.5, 0.9, 7.0, 7.0, 1.0, 0.5, 0.0)
    ]


def test_piecewise_is_a_staircase():
    schedule = piecewise({10: 0.1, 0: 1.0, 20: 0.01})
    assert [schedule(s) for s in (0, 9, 10, 19, 20, 99)] == [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]


@pytest.mark.parametrize(
    "schedule",
    [
        constant(2.0),
        linear(8.0, 2.0, steps=100),
        cosine(1.0, 0.0, 10),
        exponential(1.0, 0.1, 5),
        warmup(5, cosine(1.0, 0.0, 10)),
        piecewise({0: 1.0, 3: 2.0}),
        join([constant(1.0), linear(1.0, 0.0, 4)], boundaries=[3]),
    ],
)
def test_it_prints_as_the_code_that_made_it(schedule):
    again = eval(repr(schedule), vars(schedules))
    assert again == schedule and hash(again) == hash(schedule)
    assert [again(s) for s in range(20)] == [schedule(s) for s in range(20)]
    assert all(type(schedule(s)) is float for s in range(20))
    for other in (pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule)):
        assert other == schedule and hash(other) == hash(schedule)
        assert [other(s) for s in range(20)] == [schedule(s) for s in range(20)]


def test_what_a_schedule_was_made_of_can_change_afterwards():
    values, parts = {0: 1.0, 3: 2.0}, [constant(1.0), constant(2.0)]
    schedule, joint = piecewise(values), join(parts, [3])
    values[3], parts[1] = 9.0, constant(9.0)
    assert schedule(5) == joint(5) == 2.0


def test_schedules_that_differ_are_not_equal():
    assert linear(1.0, 0.0, 10) != linear(1.0, 0.0, 11)
    assert linear(1.0, 0.0, 10) != cosine(1.0, 0.0, 10)


@pytest.mark.parametrize("ramp", RAMPS)
@pytest.mark.parametrize("steps", [0, -1])
def test_a_ramp_without_steps_is_refused(ramp, steps):
    with pytest.raises(ValueError, match=f"{ramp.__name__}: steps is {steps}; a positive number"):
        ramp(1.0, 0.5, steps)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"exponential: start 1.0 and end 0.0 .* Use linear"):
        exponential(1.0, 0.0, 10)
    with pytest.raises(ValueError, match=r"warmup: steps is 0"):
        warmup(0)
    with pytest.raises(ValueError, match=r"piecewise: boundaries \[5\]; the first must be 0"):
        piecewise({5: 1.0})
    with pytest.raises(ValueError, match=r"piecewise: boundaries \[\]"):
        piecewise({})
    with pytest.raises(ValueError, match=r"join: 2 schedules .* 1 increasing boundaries"):
        join([constant(1.0), constant(2.0)], [])
    with pytest.raises(ValueError, match=r"join: 3 schedules and boundaries \[5, 5\]"):
        join([constant(1.0)] * 3, [5, 5])
