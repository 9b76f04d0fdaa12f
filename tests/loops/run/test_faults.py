"""Laws of faults: what was done is saved, and the message says what happened and where."""

from __future__ import annotations

import errno
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import fkd
from fkd.loops import CheckpointError, LoopError, NonFiniteError, fit, train_step
from fkd.loops._base import files as _files
from fkd.loops._base.errors import MismatchError
from fkd.loops._checkpoint.checkpoint import load_latest

from ..training import adamw, batches, make, newest, objective, same_end, train


def raises_at(index: int) -> Any:
    """A loader that fails once, in its second epoch."""
    epochs = 0

    def epoch(seed: int) -> Any:
        nonlocal epochs
        del seed
        epochs += 1
        for i, made in enumerate(batches()):
            if (epochs, i) == (2, index):
                raise OSError("the disk with the data is gone")
            yield made

    return epoch


def test_a_loader_that_raises(tmp_path):
    loader = raises_at(2)
    with pytest.raises(LoopError, match=r"batch 2 of epoch 1 \(step 7\).*OSError.*disk with") as e:
        train(tmp_path / "one", loader)
    assert isinstance(e.value.__cause__, OSError)
    assert newest(tmp_path / "one").name == "step-00000007"
    train(tmp_path / "one", loader)  # the disk is back
    train(tmp_path / "whole")
    assert same_end(tmp_path / "one", tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: {"x": b["x"]}, r"missing: batch\['y'\]"),
        (lambda b: {**b, "z": b["y"]}, r"new: batch\['z'\]"),
        (lambda b: {**b, "x": b["x"][0]}, "float32 with 2 axes and is float32 with 1 axes"),
        (lambda b: {**b, "x": b["x"].double()}, "float32 with 2 axes and is float64"),
        (lambda b: (b["x"], b["y"]), r"missing: batch\['x'\]"),
        (lambda b: {**b, "x": b["x"][:, :2]}, "the step failed"),
        (lambda b: {**b, "y": b["y"][:2]}, "the step failed"),
        (lambda b: None, r"missing: batch\['x'\]"),
    ],
)
def test_a_batch_of_another_structure(tmp_path, change, message):
    loader = batches()
    loader[3] = change(loader[3])
    with pytest.raises(LoopError, match=r"batch 3 of epoch 0 \(step 3\)(.|\n)*" + message):
        train(tmp_path, loader, save_every=100)
    assert newest(tmp_path).name == "step-00000003"
    train(tmp_path / "good", batches(), epochs=None, steps=3)
    saved, good = load_latest(tmp_path), load_latest(tmp_path / "good")
    for name, value in good.tree["state"]["trainable"]["student"].items():  # type: ignore[union-attr]
        assert torch.equal(saved.tree["state"]["trainable"]["student"][name], value)  # type: ignore[union-attr]


def test_a_mistake_in_the_objective_is_an_objective_error(tmp_path):
    with pytest.raises(fkd.ObjectiveError, match="batch"):
        train(tmp_path, [{"x": torch.ones(4, 5)}])


def test_a_run_that_is_not_finite_stops_saves_and_names_the_terms(tmp_path):
    loader = batches()
    for b in loader[2:]:
        b["x"] = b["x"] * float("nan")
    with pytest.raises(NonFiniteError) as caught:
        train(tmp_path, loader, max_nonfinite=3, log_every=5, save_every=100)
    text = str(caught.value)
    assert "3 updates in a row" in text and "loss/kd" in text and "loss/labels" in text
    assert newest(tmp_path).name == "step-00000005"
    found = load_latest(tmp_path)
    assert found.tree["state"]["skipped"] == 3  # type: ignore[union-attr]
    train(tmp_path / "good", loader[:2], epochs=1)
    good = load_latest(tmp_path / "good")
    for name, value in good.tree["state"]["trainable"]["student"].items():  # type: ignore[union-attr]
        assert torch.equal(found.tree["state"]["trainable"]["student"][name], value)  # type: ignore[union-attr]


def test_only_the_terms_that_are_not_finite_are_named():
    step, state = make()
    state.loss_state["centred"].fill_(float("inf"))
    with pytest.raises(NonFiniteError, match="since loss/centred") as caught:
        list(fit(step, state, batches(), epochs=1, max_nonfinite=1, log_every=1))
    assert "loss/kd" not in str(caught.value)


def test_finite_updates_in_between_begin_the_count_anew():
    train(None, batches(bad=1), epochs=3, max_nonfinite=2, log_every=1)
    with pytest.raises(NonFiniteError):
        train(None, batches(bad=1)[1:2] * 2, epochs=3, max_nonfinite=2, log_every=1)


# -- whose checkpoint it is -----------------------------------------------------------------


def _fit(folder: Path, step: Any) -> None:
    list(fit(step, step.init(3), batches(), steps=2, checkpoint_dir=folder))


def _step(made: Any = None, optimizer: Any = adamw, **options: Any) -> Any:
    return train_step(made or objective(), optimizer, compile=False, **options)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (lambda: _step(objective(weight=0.25)), "terms/kd: .*weight=0.5.*weight=0.25"),
        (
            lambda: _step(None, lambda p: torch.optim.SGD(p, lr=0.1)),
            "optimizer/class: .*AdamW.*SGD",
        ),
        (lambda: _step(None, lambda p: torch.optim.AdamW(p, lr=0.02)), "lr: .*0.01.*0.02"),
        (lambda: _step(clip=2.0), "step/clip: null in the checkpoint, 2.0 here"),
        (lambda: _step(accumulate=2), "step/accumulate: 1 in the checkpoint, 2 here"),
        (lambda: _step(_other_teacher()), "models/teacher/values: "),
        (lambda: _step(_other_decay()), "models/slow/decay: .*0.9.*0.5"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, other, difference):
    _fit(tmp_path, _step())
    with pytest.raises(MismatchError, match=f"(?s)another objective or optimizer.*{difference}"):
        _fit(tmp_path, other())
    assert newest(tmp_path).name == "step-00000002"


def _other_teacher() -> fkd.Objective:
    made = objective()
    made.program.model("teacher").module.first.bias.data[1] += 1.0  # type: ignore[union-attr]
    return made


def _other_decay() -> fkd.Objective:
    made = objective()
    return fkd.Objective(made.terms, **{**made.models, "slow": fkd.ema("student", decay=0.5)})


def test_a_knob_that_has_moved_is_no_other_objective(tmp_path):
    knob = torch.tensor(0.5)
    step = _step(objective(weight=knob))
    _fit(tmp_path, step)
    knob.fill_(0.25)
    list(fit(step, step.init(3), batches(), steps=4, checkpoint_dir=tmp_path))
    assert newest(tmp_path).name == "step-00000004"


def test_two_runs_in_one_folder_are_refused(tmp_path):
    step, state = make()
    first = fit(step, state, batches(), epochs=1, checkpoint_dir=tmp_path)
    next(first)
    with pytest.raises(CheckpointError, match=f"in use by another run.*process {os.getpid()}"):
        train(tmp_path)
    first.close()
    train(tmp_path)


def test_leaving_the_loop_gives_everything_back(tmp_path):
    before = multiprocessing.active_children()
    step, state = make()
    for event in fit(step, state, batches(), epochs=1, checkpoint_dir=tmp_path, log_dir=tmp_path,
                     log_every=1, progress=False):  # fmt: skip
        if event.kind == "log":
            break
    assert multiprocessing.active_children() == before
    train(tmp_path)


# -- disks ----------------------------------------------------------------------------------


def test_a_full_disk(tmp_path, monkeypatch):
    real = os.write

    def full(event: Any) -> None:
        def write(descriptor: int, data: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        if event.kind == "log":
            monkeypatch.setattr(_files.os, "write", write)

    with pytest.raises(CheckpointError, match=r"No space left on device.*newest whole.*00000003"):
        train(tmp_path, callbacks=[full])
    monkeypatch.setattr(_files.os, "write", real)
    assert [p.name for p in tmp_path.iterdir() if p.name != ".lock"] == ["step-00000003"]
    train(tmp_path)
    train(tmp_path / "whole")
    assert same_end(tmp_path, tmp_path / "whole")


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be opened"):
        train(tmp_path / "file")


def test_the_fault_comes_first_when_saving_fails_too(tmp_path, monkeypatch):
    def write(descriptor: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(_files.os, "write", write)
    with pytest.raises(LoopError, match="disk with the data is gone") as caught:
        train(tmp_path, raises_at(2), save_every=100)
    assert "No space left" in caught.value.__notes__[0]
