"""`export_best`: the folder of the best student is whole at every moment, and the best one."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fkd.loops import Event, best, export, restore
from fkd.loops._checkpoint import whole
from tests.loops.training import batches, in_process, make, train

DEV = batches(2)


def exporting(folder: Path, **more: Any) -> list[Event]:
    often = {"dev": DEV, "evaluate_every": 2, "save_every": None}
    return train(folder / "run", export_best=folder / "best", **often, **more)


def handed_over(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    record = json.loads((folder / "best" / "fkd-best.json").read_text())
    return record, load_file(folder / "best" / "model.safetensors")


def is_best(folder: Path) -> bool:
    """Whether the files are the student of the best checkpoint."""
    step, _ = make()
    path = best(folder / "run", higher_is_better=False)
    assert path is not None
    state = restore(step, path)
    record, tensors = handed_over(folder)
    module = export(step.objective, state)
    same = all(torch.equal(x, tensors[n]) for n, x in module.state_dict().items())
    return same and record["step"] == state.step and record["metric"] == "loss/total"


def kill_at_save(number: int) -> Any:
    """Between a checkpoint that records the best evaluation and the files of its student."""
    saved = 0

    def callback(event: Event) -> None:
        nonlocal saved
        saved += event.kind == "save"
        if event.kind == "save" and saved == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return callback


def test_the_best_student_is_written_while_the_run_goes_on(tmp_path):
    exporting(tmp_path)
    assert is_best(tmp_path)


@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_kill_between_checkpoint_and_files_is_made_good(tmp_path, number):
    killed = in_process(exporting, tmp_path, callbacks=[kill_at_save(number)])
    assert killed == -signal.SIGKILL
    exporting(tmp_path)
    assert is_best(tmp_path)


def test_a_finished_run_that_was_killed_before_its_files_writes_them(tmp_path):
    """Nothing is left to train or to evaluate: only the files are missing."""
    exporting(tmp_path, steps=2)
    for file in (tmp_path / "best").iterdir():
        file.unlink()
    exporting(tmp_path, steps=2)
    assert is_best(tmp_path)


def test_files_of_another_run_are_not_taken_for_the_best(tmp_path):
    exporting(tmp_path, steps=2)
    record, _ = handed_over(tmp_path)
    (tmp_path / "best" / "fkd-best.json").write_text(json.dumps({**record, "seed": 17}))
    (tmp_path / "best" / "model.safetensors").unlink()
    exporting(tmp_path, steps=2)
    assert is_best(tmp_path)


def write_twice(folder: Path, kill: int) -> None:
    """Replace the files of a folder; killed at one of the calls that reach the disk."""
    calls = 0
    fsync = os.fsync

    def counted(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = counted
    with whole.whole_folder(folder) as beside:
        (beside / "a").write_text("new")
        (beside / "b").write_text("new")


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    folder = tmp_path / "out"
    with whole.whole_folder(folder) as beside:
        for name in ("a", "b", "kept"):
            (beside / name).write_text("old")
    ends: list[str] = []
    for kill in range(1, 12):
        code = in_process(write_twice, folder, kill)
        texts = {(folder / name).read_text() for name in ("a", "b")}
        assert len(texts) == 1 and (folder / "kept").read_text() == "old"
        ends.append(texts.pop())
        if code == 0:
            break
        for name in ("a", "b"):
            (folder / name).write_text("old")
    assert ends[0] == "old" and ends[-1] == "new"
    assert [p.name for p in tmp_path.iterdir() if p.name != "out"] in ([], [".writing-out"])


def test_where_folders_cannot_be_exchanged_files_are_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(whole, "_exchange", lambda one, other: False)
    folder = tmp_path / "out"
    for text in ("old", "new"):
        with whole.whole_folder(folder) as beside:
            (beside / "a").write_text(text)
            (beside / "sub").mkdir()
            (beside / "sub" / "b").write_text(text)
    assert (folder / "a").read_text() == (folder / "sub" / "b").read_text() == "new"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"export_best": "out"}, "export_best needs dev"),
        ({"export_best": "out", "dev": DEV}, "export_best needs checkpoint_dir"),
        ({"export_model": "student"}, "export_model needs export_best"),
        ({"export_best": "out", "keep_best": 0}, "keep_best of at least 1"),
    ],
)
def test_what_it_needs_is_said_at_once(options, words):
    with pytest.raises(ValueError, match=words):
        train(None, **options)


def test_the_model_to_export_has_to_be_there(tmp_path):
    with pytest.raises(ValueError, match=r"export_model is 'studnet'.*Models: student"):
        exporting(tmp_path, export_model="studnet")
