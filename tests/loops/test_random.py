"""Randomness as a function of seed and step."""

from __future__ import annotations

import logging
import random
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fkd.loops import fold_in
from fkd.loops._base import random as _random
from fkd.loops._base.random import seeded

CPU = torch.device("cpu")
numbers = st.integers(0, 2**64 - 1)


@given(numbers, numbers)
def test_a_folded_seed_is_a_seed(seed, data):
    assert 0 <= fold_in(seed, data) < 2**64
    assert fold_in(seed, data) == fold_in(seed, data)


def test_it_is_the_published_mixing_function():
    # The first outputs of SplitMix64 from seed 0, as its reference implementation gives them:
    # each is the mix of the state that the one before it has left.
    from fkd.loops._base.random import _mix

    gamma = 0x9E3779B97F4A7C15
    assert _mix(0) == 0xE220A8397B1DCDAF
    assert _mix(gamma) == 0x6E789E6AA1B965F4
    assert _mix(2 * gamma & (2**64 - 1)) == 0x06C45D188009454F


def test_seeds_that_are_near_are_far_apart_when_folded():
    folded = {fold_in(seed, step) for seed in range(50) for step in range(50)}
    assert len(folded) == 2500
    bits = [bin(fold_in(0, n) ^ fold_in(0, n + 1)).count("1") for n in range(500)]
    assert 28 < sum(bits) / len(bits) < 36


def test_folding_is_not_symmetric():
    assert fold_in(1, 2) != fold_in(2, 1)


def test_inside_the_numbers_follow_the_seed_and_outside_nothing_has_happened():
    before = torch.get_rng_state()
    with seeded(7, CPU):
        one = torch.randn(3)
    with seeded(7, CPU):
        again = torch.randn(3)
    with seeded(8, CPU):
        other = torch.randn(3)
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_error_inside_leaves_the_generator_as_it_was():
    before = torch.get_rng_state()
    try:
        with seeded(7, CPU):
            torch.randn(3)
            raise KeyError
    except KeyError:
        pass
    assert torch.equal(torch.get_rng_state(), before)


def draws():
    return torch.rand(()).item(), random.random(), np.random.rand(), np.random.randn()


@pytest.mark.plain  # the type checker itself draws from `random`
def test_the_generators_of_python_and_numpy_follow_the_seed_and_are_put_back():
    np.random.randn()  # NumPy draws pairs, and keeps one
    states = random.getstate(), np.random.get_state()
    with seeded(7, CPU):
        one = draws()
    with seeded(7, CPU):
        assert draws() == one
    with seeded(7 + 2**32, CPU):
        assert not set(draws()[1:]) & set(one)  # torch on a CPU reads 32 bits of a seed
    assert random.getstate() == states[0]
    now = np.random.get_state()
    assert (now[1] == states[1][1]).all() and now[2:] == states[1][2:]


@pytest.mark.plain
def test_what_is_compiled_leaves_them_alone():
    states = random.getstate(), np.random.get_state()[1].tolist()
    with seeded(7, CPU, host=False):
        assert (random.getstate(), np.random.get_state()[1].tolist()) == states


@pytest.mark.plain
def test_threads_take_turns():
    expected = {}
    for seed in range(8):
        with seeded(seed, CPU):
            expected[seed] = [draws() for _ in range(20)]
    found, start = {}, threading.Barrier(8)

    def run(seed):
        start.wait()
        with seeded(seed, CPU):
            found[seed] = [draws() for _ in range(20)]

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_a_thread_that_waits_long_says_so(monkeypatch, caplog):
    monkeypatch.setattr(_random, "_PATIENCE", 0.01)
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with seeded(1, CPU):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(10)
    threading.Timer(0.1, leave.set).start()
    with caplog.at_level(logging.WARNING), seeded(2, CPU):
        pass
    thread.join()
    assert "has waited 0.01 s for another thread" in caplog.text
