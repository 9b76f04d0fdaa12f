"""The split law over ranks: a step of several processes is the step of one on the whole batch."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from tests.parallel.cases import CASES, COMPILED, all_of
from tests.parallel.processes import in_processes


@functools.cache
def told(count: int, compiled: bool) -> list[dict[str, Any]]:
    return in_processes(count, all_of, list(COMPILED if compiled else CASES))


def same_as_one(ranks: list[dict[str, Any]], name: str) -> None:
    first = ranks[0][name]
    gaps = {n: first[n] for n in ("trainable", "frozen", "buffers", "loss_state")}
    assert all(gap < 2e-6 for gap in gaps.values()), gaps
    assert first["metrics"] < 3e-5
    assert first["skipped"][0] == first["skipped"][1] == ("nan" in name)
    assert len({rank[name]["digest"] for rank in ranks}) == 1  # the same bits on all ranks


@pytest.mark.parametrize("name", CASES)
def test_ranks_are_as_one_process(name):
    same_as_one(told(3, compiled=False), name)


@pytest.mark.compile
@pytest.mark.parametrize("name", COMPILED)
def test_ranks_are_as_one_process_in_one_graph(name):
    ranks = told(2, compiled=True)
    same_as_one(ranks, name)
    assert all(rank[name]["compilations"] == 1 for rank in ranks)
