"""The loop over several processes: the same run, written once, ended together."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parallel import runs
from tests.parallel.processes import in_processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def many(folder) -> list[Any]:
    return in_processes(2, runs.runs, str(folder / "many"))


def close(one: Any, other: Any) -> None:
    torch.testing.assert_close(torch.tensor(one), torch.tensor(other), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["shuffled", "bucketed", "list"])
def test_a_run_of_two_is_the_run_of_one(name, many, folder):
    loader = {
        "shuffled": runs.shuffled,
        "bucketed": runs.bucketed,
        "list": lambda: list(runs.shuffled()),
    }
    torch.manual_seed(0)
    one = runs.run(None, str(folder / "one" / name), loader[name]())
    first, second = many[0][name], many[1][name]
    assert first == second  # events, values and all bits
    if name == "list":  # the batches were drawn in another process, with other generators
        return
    assert first["events"] == one["events"] and first["exported"] == 0
    for a, b in zip(first["parameters"], one["parameters"], strict=True):
        close(a, b)
    for a, b in zip(first["values"], one["values"], strict=True):
        assert a.keys() == b.keys() and a["order"] == b["order"]
        close([a[k] for k in a if k != "order"], [b[k] for k in a if k != "order"])


def test_what_is_there_once_is_written_once(many, folder):
    there = {p.name for p in (folder / "many" / "shuffled").iterdir()}
    assert {"metrics.jsonl", "config.json", "report.html", "out", "check.txt"} <= there
    lines = (folder / "many" / "shuffled" / "metrics.jsonl").read_text().splitlines()
    steps = [(record["kind"], record["step"]) for record in map(json.loads, lines)]
    assert len(steps) == len(set(steps))


@functools.cache
def resumed(folder: Path, before: int, after: int) -> list[Any]:
    path = str(folder / f"{before}-{after}")
    in_processes(before, runs.first_part, path)
    return in_processes(after, runs.second_part, path)


def test_a_run_goes_on_to_the_same_bits(folder, many):
    ranks = resumed(folder, 2, 2)
    assert {rank["digest"] for rank in ranks} == {many[0]["shuffled"]["digest"]}


@pytest.mark.parametrize("after", [1, 3])
def test_a_run_goes_on_with_another_number_of_processes(after, folder, many):
    ranks = resumed(folder, 2, after)
    assert len({rank["digest"] for rank in ranks}) == 1
    assert ranks[0]["step"] == many[0]["shuffled"]["step"]
    for a, b in zip(ranks[0]["parameters"], many[0]["shuffled"]["parameters"], strict=True):
        close(a, b)


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("loader", "the disk of rank 1 is gone"),
        ("callback", "a callback of rank 1"),
        ("data", "rank 1 has another batch than rank 0"),
        ("short", "rank 1 gave no more batches"),
        ("disk", "/proc/none"),
    ],
)
def test_an_error_of_one_ends_all_with_its_message(where, told, tmp_path):
    ranks = in_processes(2, runs.failing, str(tmp_path), where)
    assert all(told in rank["message"] for rank in ranks), ranks
    if where in ("loader", "callback"):
        assert not ranks[1]["known"] and ranks[0]["known"]
        assert "rank 1 failed" in ranks[0]["message"]
        assert ranks[0]["saved"]


def test_steps_on_the_same_processes_have_one_group_on_the_host():
    assert in_processes(2, runs.host_groups) == [[True, False, [0, 1]]] * 2


def test_a_signal_to_one_ends_all_after_the_same_step(tmp_path):
    ranks = in_processes(2, runs.failing, str(tmp_path), "signal")
    assert [rank["type"] for rank in ranks] == ["Interrupted", "Interrupted"]
    assert len(ranks[0]["saved"]) == 1


@pytest.mark.parametrize("axis", ["replicate", "shard"])
def test_stages_of_several_processes_are_those_of_one(axis, tmp_path):
    one = runs.staged(None, str(tmp_path / "one"), axis)
    ranks = in_processes(2, runs.staged, str(tmp_path / "two"), axis)
    assert ranks[0] == ranks[1] and ranks[0].keys() == one.keys()
    if axis == "shard":  # killed in the second stage, and gone on with
        in_processes(2, runs.staged, str(tmp_path / "three"), axis, 5)
        assert in_processes(2, runs.staged, str(tmp_path / "three"), axis) == ranks
    for model, held in one.items():
        for name, x in held.items():
            close(ranks[0][model][name], x)


@pytest.mark.parametrize("axis", ["replicate", "shard"])
def test_batches_are_dealt_out_where_a_mesh_is_given(axis):
    one = runs.measured(None, axis)
    ranks = in_processes(3, runs.measured, axis)
    assert ranks[0]["values"] == ranks[1]["values"] == ranks[2]["values"]
    assert [rank["calls"] for rank in ranks] == ([3, 3, 3] if axis == "shard" else [3, 3, 2])
    for rank in ranks:
        assert len(rank["scored"]) == len(one["scored"])
        for a, b in zip(rank["scored"], one["scored"], strict=True):
            close(a[0], b[0])
            close(a[1], b[1])
    for name, value in one["values"].items():
        close(ranks[0]["values"][name], value)


def test_what_processes_evaluate_is_the_same_or_an_error_of_all():
    first, second = in_processes(2, runs.refused)
    for told in (first, second):
        assert "rank 1 has other batches to evaluate than rank 0" in told["other"]
        assert "rank 1 has other batches to evaluate than rank 0" in told["fewer"]
        assert "the loader gave no batch" in told["none"]
        assert "the disk of rank 1 is gone" in told["loader"]
        assert "a metric of rank 1" in told["metric"]
        assert "the step of 'b' has another mesh than that of 'a'" in told["stages"]
    assert first["loader"].startswith("RankError: rank 1 failed: ")
