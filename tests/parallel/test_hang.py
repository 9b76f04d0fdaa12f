"""A process that hangs is named by all, and the run goes on when it is started again."""

from __future__ import annotations

import pytest

from tests.parallel.hangs import hanging
from tests.parallel.processes import in_processes


@pytest.mark.parametrize(
    ("count", "where", "seconds", "told"),
    [
        (2, "loader", 6.0, "rank 1 hangs: it did not come within the time-out"),
        (3, "loader", 2.6, "rank 2 hung: it came after the time-out"),
        (2, "step", 6.0, "rank 1 hangs: it did not come within the time-out"),
    ],
)
def test_a_process_that_hangs_is_named_by_all(count, where, seconds, told, tmp_path):
    ranks = in_processes(count, hanging, str(tmp_path), where, seconds)
    assert all(told in rank["message"] and rank["known"] for rank in ranks), ranks
    if where == "step":
        again = in_processes(count, hanging, str(tmp_path), "", 0.0)
        undisturbed = in_processes(count, hanging, str(tmp_path / "undisturbed"), "", 0.0)
        assert again == undisturbed
