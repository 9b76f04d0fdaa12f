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


def test_a_signal_to_one_ends_all_after_the_same_step(tmp_path):
    ranks = in_processes(2, runs.failing, str(tmp_path), "signal")
    assert [rank["type"] for rank in ranks] == ["Interrupted", "Interrupted"]
    assert len(ranks[0]["saved"]) == 1
