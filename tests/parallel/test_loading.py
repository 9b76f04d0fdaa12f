"""Values that each process reads for itself are those of models that were loaded whole."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from tests.parallel import loading
from tests.parallel.processes import in_processes


@pytest.mark.parametrize("axis", ["shard", "replicate"])
def test_rows_from_files_are_those_of_whole_models(axis, tmp_path):
    loading.written(str(tmp_path))
    whole = in_processes(2, loading.read, str(tmp_path), axis, "")
    for empty in ("on_meta", "meta") if axis == "shard" else ("on_meta",):
        read = in_processes(2, loading.read, str(tmp_path), axis, empty)
        assert len({rank["digest"] for rank in (*whole, *read)}) == 1
        assert read[0]["exported"] == whole[0]["exported"]
        assert [rank["cut"] for rank in read] == [rank["cut"] for rank in whole]
        if axis == "shard":  # nothing larger than the rows of the largest matrix, half of all
            assert all(rank["largest"] == 26 * 16 for rank in read[:1])
            everything = 51 * 16 * 4 + 4 * (4 * 16 * 16 + 3 * 24 * 16 + 2 * 16)
            assert all(rank["total"] < 0.52 * everything for rank in read), read
