"""Tensor-parallel teachers: processes that compute the same examples with one teacher in parts."""

from __future__ import annotations

import pytest
import torch

from tests.parallel import tensor
from tests.parallel.processes import in_processes


def same_as_one(ranks, compilations):
    for told in ranks:
        assert told["held"] == 5  # all but the embedding
        assert told["metrics"] < 1e-4 and told["values"] < 1e-4, told
        assert told["parameters"] < 2e-6
        assert told["related"] == ["rkd"]
        assert told["compilations"] == compilations


@pytest.mark.parametrize("axes", [{"tp": 2}, {"shard": 2, "tensor": 2}])
def test_a_teacher_in_parts_is_a_whole_one(axes):
    count = 4 if len(axes) == 2 else 2
    same_as_one(in_processes(count, tensor.compared, axes, False), 0)


@pytest.mark.compile
def test_a_teacher_in_parts_is_a_whole_one_in_one_graph():
    same_as_one(in_processes(2, tensor.compared, {"tensor": 2}, True), 1)


def test_a_run_goes_on_with_a_teacher_in_parts_and_with_a_whole_one(tmp_path):
    whole = in_processes(2, tensor.run, str(tmp_path / "whole"), True, 8)
    assert whole[0]["digest"] == whole[1]["digest"]
    in_processes(2, tensor.run, str(tmp_path / "run"), True, 4)
    again = in_processes(2, tensor.run, str(tmp_path / "run"), True, 6)
    assert again[0]["digest"] == again[1]["digest"]
    last = in_processes(2, tensor.run, str(tmp_path / "run"), False, 8)
    assert last[0]["step"] == 8
    for a, b in zip(last[0]["weights"], whole[0]["weights"], strict=True):
        torch.testing.assert_close(torch.tensor(a), torch.tensor(b), atol=1e-5, rtol=1e-4)


def test_the_plan_of_transformers_is_followed():
    pytest.importorskip("transformers.distributed.tensor_parallel")
    for told in in_processes(2, tensor.planned):
        assert told["held"] == 8 and told["gap"] < 2e-6
