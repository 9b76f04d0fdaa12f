"""Checkpoints of processes that hold rows: each writes and reads its own, all or none."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from fkd.loops._base.errors import DamagedError
from fkd.loops._checkpoint import tensors
from fkd.loops._checkpoint.checkpoint import load, load_latest, save
from tests.parallel import runs
from tests.parallel.processes import in_processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


LAST = 10
"""Steps of a run: the second epoch begins after 8, a checkpoint is written after 3, 6, 9."""


@functools.cache
def begun(folder: Path, count: int, name: str = "") -> Path:
    """A run of so many processes that has ended after six steps."""
    path = folder / f"{count}{name}"
    in_processes(count, runs.sharded_part, str(path), 6)
    return path


def copied(path: Path, to: Path) -> Path:
    """The checkpoints alone."""
    for file in path.glob("step-*/*"):
        place = to / file.parent.name / file.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes())
    return to


def newest(path: Path) -> Path:
    return max(path.glob("step-*"))


def test_every_process_writes_its_rows(folder):
    checkpoint = newest(begun(folder, 2))
    files = sorted(p.name for p in checkpoint.iterdir())
    assert files == ["manifest.json", "state-00001.safetensors", "state.safetensors"]
    said = json.loads((checkpoint / "manifest.json").read_text())["manifest"]
    cut = {name: about["rows"] for name, about in said["tensors"].items() if "rows" in about}
    assert {n.split("/")[1] for n in cut} == {"trainable", "frozen", "optimizer"}
    with safe_open(checkpoint / "state-00001.safetensors", framework="pt") as file:
        for name, rows in cut.items():
            assert file.get_tensor(name).shape[0] == rows[1]
        assert set(file.keys()) == set(cut)


@functools.cache
def undisturbed_run(folder: Path) -> list[Any]:
    return in_processes(2, runs.sharded_part, str(folder / "whole"), LAST)


def test_a_run_goes_on_with_any_number_of_processes(folder, tmp_path):
    undisturbed = undisturbed_run(folder)
    for before, after in ((2, 1), (2, 2), (2, 4), (4, 2)):
        path = copied(begun(folder, before), tmp_path / f"{before}-{after}")
        ranks = in_processes(after, runs.sharded_part, str(path), LAST)
        assert len({rank["digest"] for rank in ranks}) == 1
        assert all(rank["exported"] == 0 and rank["step"] == LAST for rank in ranks)
        if before == after == 2:
            assert ranks[0]["digest"] == undisturbed[0]["digest"]
        for a, b in zip(ranks[0]["parameters"], undisturbed[0]["parameters"], strict=True):
            torch.testing.assert_close(torch.tensor(a), torch.tensor(b), atol=2e-4, rtol=1e-3)


def test_a_torn_part_is_a_damaged_checkpoint(folder, tmp_path):
    path = copied(begun(folder, 2), tmp_path)
    last = newest(path)
    part = last / "state-00001.safetensors"
    raw = bytearray(part.read_bytes())
    raw[-1] ^= 1
    part.write_bytes(raw)
    with pytest.raises(DamagedError, match=r"state-00001.safetensors is damaged"):
        load(last)
    before = load_latest(path)
    assert before is not None and before.path != last and len(before.skipped) == 1
    part.unlink()
    with pytest.raises(DamagedError, match=r"state-00001.safetensors is missing"):
        load(last)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda said: said["files"].pop("state-00001.safetensors"), "rows is"),
        (lambda said: said["files"].update({"../x": [1, "0" * 64]}), "'../x'"),
        (lambda said: said["files"].pop("state.safetensors"), "no field state.safetensors"),
    ],
)
def test_a_manifest_of_other_files_is_refused(change, told, folder, tmp_path):
    last = newest(copied(begun(folder, 2), tmp_path))
    said = json.loads((last / "manifest.json").read_text())["manifest"]
    change(said)
    body = json.dumps(said).encode()
    from fkd.loops._checkpoint import manifest as module

    sha = module.hashlib.sha256(body).hexdigest().encode()
    (last / "manifest.json").write_bytes(
        module._HEAD + sha + module._MIDDLE + body + module._TAIL  # pyright: ignore
    )
    with pytest.raises(DamagedError, match=told.replace(".", r"\.")):
        load(last)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("full", "rank 1: its part cannot be written: No space left on device"),
        ("first", "step-00000006 cannot be written: No space left on device"),
    ],
)
def test_a_full_disk_of_one_process_is_an_error_of_all(fault, told, tmp_path):
    ranks = in_processes(2, runs.sharded_part, str(tmp_path), LAST, fault)
    assert all(told in rank["message"] for rank in ranks), ranks
    assert len(list(tmp_path.glob("step-*"))) == 1 and not list(tmp_path.glob(".writing-*"))
    load(newest(tmp_path))


def test_of_parts_under_way_at_a_kill_nothing_is_read(folder, tmp_path):
    with pytest.raises(AssertionError, match="ended with"):
        in_processes(2, runs.sharded_part, str(tmp_path), LAST, "async killed")
    assert newest(tmp_path).name == "step-00000003"
    load(newest(tmp_path))
    ranks = in_processes(2, runs.sharded_part, str(tmp_path), LAST, "async")
    assert {rank["digest"] for rank in ranks} == {undisturbed_run(folder)[0]["digest"]}
    assert not list(tmp_path.glob(".writing-*"))
    files = {p.name for p in newest(tmp_path).iterdir()}
    assert newest(tmp_path).name == f"step-{LAST:08}" and "state-00001.safetensors" in files


def test_an_error_in_a_part_under_way_ends_all_at_the_next_step(tmp_path):
    ranks = in_processes(2, runs.sharded_part, str(tmp_path), LAST, "async full")
    told = "rank 1: its part cannot be written: No space left on device"
    assert all(told in rank["message"] and rank["step"] <= 8 for rank in ranks), ranks
    assert len(list(tmp_path.glob("step-*"))) == 1 and not list(tmp_path.glob(".writing-*"))


def test_without_a_folder_in_common_the_first_process_writes_all(folder, tmp_path):
    ranks = in_processes(2, runs.sharded_part, str(tmp_path), 6, "apart")
    assert [p.name for p in sorted(newest(tmp_path).iterdir())] == [
        "manifest.json",
        "state.safetensors",
    ]
    together = load(newest(begun(folder, 2))).tree["state"]
    alone = load(newest(tmp_path)).tree["state"]
    for model, held in together["trainable"].items():
        for name, x in held.items():
            assert torch.equal(x, alone["trainable"][model][name])
    ranks = in_processes(2, runs.sharded_part, str(tmp_path), LAST, "apart")
    assert len({rank["digest"] for rank in ranks}) == 1


def test_only_the_wanted_rows_are_read(tmp_path):
    x = torch.arange(24.0).reshape(8, 3)
    files = [tmp_path / "state.safetensors", tmp_path / "state-00001.safetensors"]
    for path, rows in zip(files, (x[:5], x[5:]), strict=True):
        path.write_bytes(b"".join(bytes(c) for c in tensors.chunks({"x": rows})))
    about: dict[str, Any] = {"x": {"dtype": "float32", "shape": [8, 3], "rows": [5, 3]}}
    for wanted in (slice(0, 2), slice(4, 6), slice(5, 8), slice(8, 8), slice(0, 8), None):
        read = tensors.read(files, about, first=files[0], wanted=lambda name, said: wanted)  # noqa: B023
        assert torch.equal(read["x"], x if wanted is None else x[wanted])
    plain = save(tmp_path / "plain", {"x": x}, step=1) / "state.safetensors"
    about = {"x": {"dtype": "float32", "shape": [8, 3]}}
    read = tensors.read([plain], about, first=plain, wanted=lambda name, said: slice(2, 5))
    assert torch.equal(read["x"], x[2:5])
