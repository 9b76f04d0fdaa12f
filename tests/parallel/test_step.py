"""The split law over ranks: a step of several processes is the step of one on the whole batch."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from tests.parallel.cases import CASES, COMPILED, HALVED, all_of
from tests.parallel.processes import in_processes


@functools.cache
def told(count: int, *names: str) -> list[dict[str, Any]]:
    return in_processes(count, all_of, names)


def same_as_one(ranks: list[dict[str, Any]], name: str) -> None:
    first = ranks[0][name]
    gaps = {n: first[n] for n in ("trainable", "frozen", "buffers", "loss_state", "moments")}
    assert all(gap < 2e-6 for gap in gaps.values()), gaps
    assert first["metrics"] < 1e-4
    assert first["skipped"][0] == first["skipped"][1] == ("nan" in name)
    assert len({rank[name]["digest"] for rank in ranks}) == 1  # the same bits on all ranks


@pytest.mark.parametrize("name", CASES)
def test_ranks_are_as_one_process(name):
    same_as_one(told(3, *CASES), name)


@pytest.mark.parametrize("name", HALVED)
def test_ranks_with_rows_of_the_parameters_are_as_one_process(name):
    ranks = told(3, *HALVED)
    same_as_one(ranks, name)
    assert all(rank[name]["held"] < 0.45 for rank in ranks)


def test_rows_that_several_ranks_hold_are_as_one_process():
    name = "sharded: tied, taps and refs"
    same_as_one(told(4, name), name)


@pytest.mark.compile
@pytest.mark.parametrize("name", COMPILED)
def test_ranks_are_as_one_process_in_one_graph(name):
    ranks = told(2, *COMPILED)
    same_as_one(ranks, name)
    assert all(rank[name]["compilations"] == 1 for rank in ranks)
