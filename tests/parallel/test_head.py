"""Divergences between heads of which each process has some entries of the vocabulary."""

from __future__ import annotations

import pytest

from tests.parallel import heads
from tests.parallel.processes import in_processes


@pytest.mark.parametrize("count", [2, 3])
def test_heads_in_parts_are_as_whole_ones(count):
    ranks = in_processes(count, heads.all_of)
    for told in ranks:
        assert all(x < (2e-2 if name == "bfloat16" else 5e-6) for name, x in told.items()), told


@pytest.mark.compile
def test_heads_in_parts_are_as_whole_ones_in_one_graph():
    for told in in_processes(2, heads.compiled):
        assert all(x < 5e-6 for x in told.values()), told


@pytest.mark.plain
def test_what_a_head_in_parts_cannot_do_is_refused_in_words():
    for told in in_processes(2, heads.refused):
        assert "placements (Shard(dim=1),); rows along one axis" in told["columns"]
        assert "this rank has other entries of one head than of the other" in told["places"]
        assert "student_weight has 8 entries and teacher_weight 11" in told["entries"]
        assert "a slice of neighbouring ids is expected" in told["ids"]
        assert "strategy is 'materialized'; 'chunked' is expected" in told["strategy"]
