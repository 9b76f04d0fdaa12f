"""The split law over ranks: a step of several processes is the step of one on the whole batch.

The cases of a test are computed by one launch of processes, so they are one test: workers of pytest
that had some of them each would launch all.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.parallel.cases import CASES, COMPILED, HALVED, in_ranks


def same_as_one(ranks: list[dict[str, Any]], name: str) -> None:
    first = ranks[0][name]
    gaps = {n: first[n] for n in ("trainable", "frozen", "buffers", "loss_state", "moments")}
    assert all(gap < 2e-6 for gap in gaps.values()), (name, gaps)
    assert first["metrics"] < 1e-4, (name, first["metrics"])
    assert first["skipped"][0] == first["skipped"][1] == ("nan" in name), name
    assert len({rank[name]["digest"] for rank in ranks}) == 1, name  # the same bits on all ranks


def test_ranks_are_as_one_process():
    ranks = in_ranks(3, CASES)
    for name in CASES:
        same_as_one(ranks, name)


def test_ranks_with_rows_of_the_parameters_are_as_one_process():
    ranks = in_ranks(3, HALVED)
    for name in HALVED:
        same_as_one(ranks, name)
        assert all(rank[name]["held"] < 0.45 for rank in ranks), name


def test_rows_that_several_ranks_hold_are_as_one_process():
    name = "sharded: tied, taps and refs"
    same_as_one(in_ranks(4, {name: HALVED[name]}), name)


@pytest.mark.compile
def test_ranks_are_as_one_process_in_one_graph():
    ranks = in_ranks(2, COMPILED)
    for name in COMPILED:
        same_as_one(ranks, name)
        assert all(rank[name]["compilations"] == 1 for rank in ranks), name
