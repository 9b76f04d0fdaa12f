"""Laws of checkpoints that are written beside the steps: the same as of those that are not."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fkd.loops import CheckpointError, Event
from fkd.loops._base import files
from fkd.loops._checkpoint import checkpoint
from fkd.loops._checkpoint.behind import Writer
from fkd.loops._checkpoint.checkpoint import ToSave, load, save, to_save
from fkd.loops._checkpoint.lock import lock

from ..training import in_process, kill_at, newest, same_end, train


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A disk that takes a while; which threads have written to it."""
    threads: list[str] = []
    real = checkpoint.Saving.write_state

    def write(*args: Any) -> Any:
        threads.append(threading.current_thread().name)
        time.sleep(0.2)
        return real(*args)

    monkeypatch.setattr(checkpoint.Saving, "write_state", write)
    return threads


def test_the_run_ends_with_the_same_bytes(tmp_path: Path, slow: list[str]) -> None:
    train(tmp_path / "beside", save_async=True)
    assert set(slow) == {"fkd-checkpoint"}
    train(tmp_path / "whole")
    assert same_end(tmp_path / "beside", tmp_path / "whole")


def test_the_state_is_that_of_the_step(tmp_path: Path, slow: list[str]) -> None:
    """Steps that are done while a checkpoint is written change nothing of it."""
    train(tmp_path / "beside", save_async=True, keep_last=9)
    train(tmp_path / "whole", keep_last=9)
    names = sorted(p.name for p in (tmp_path / "whole").glob("step-*"))
    assert names == sorted(p.name for p in (tmp_path / "beside").glob("step-*"))
    for name in names:
        one, other = (load(tmp_path / run / name).tree["state"] for run in ("beside", "whole"))
        for key, x in one["trainable"]["student"].items():
            assert torch.equal(x, other["trainable"]["student"][key])


def test_all_is_on_the_disk_when_the_end_is_said(tmp_path: Path, slow: list[str]) -> None:
    def callback(event: Event) -> None:
        if event.kind == "end":
            assert newest(tmp_path).name == "step-00000010"

    events = train(tmp_path, save_async=True, callbacks=[callback])
    assert next(e.message for e in events if e.kind == "save") == "saving step-00000003"


@pytest.mark.parametrize("at", [3, 4, 6, 10])
def test_killed_it_goes_on_with_the_same_bits(tmp_path: Path, slow: list[str], at: int) -> None:
    folder = tmp_path / "killed"
    assert in_process(train, folder, save_async=True, callbacks=[kill_at(at)]) == -9
    train(folder, save_async=True)
    train(tmp_path / "whole")
    assert same_end(folder, tmp_path / "whole")


def test_leaving_the_loop_leaves_a_whole_folder(tmp_path: Path, slow: list[str]) -> None:
    from fkd.loops import fit

    from ..training import batches, make

    step, state = make()
    options: Any = {"epochs": 2, "save_every": 3, "progress": False, "save_async": True}
    for event in fit(step, state, batches(), checkpoint_dir=tmp_path, **options):
        if event.kind == "save":
            break
    assert [p.name for p in tmp_path.iterdir() if p.name != ".lock"] == ["step-00000003"]
    assert load(newest(tmp_path)).step == 3
    with lock(tmp_path):  # nobody holds it
        pass


def full_disk(monkeypatch: pytest.MonkeyPatch, at: str) -> Callable[[Event], None]:
    def write(descriptor: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def callback(event: Event) -> None:
        if event.kind == at:
            monkeypatch.setattr(files.os, "write", write)

    return callback


def test_an_error_comes_out_at_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    full = full_disk(monkeypatch, "log")
    with pytest.raises(CheckpointError, match=r"No space left on device.*newest whole.*00000003"):
        train(tmp_path, save_async=True, callbacks=[full])
    monkeypatch.setattr(files.os, "write", real)
    assert [p.name for p in tmp_path.iterdir() if p.name != ".lock"] == ["step-00000003"]
    train(tmp_path, save_async=True)
    train(tmp_path / "whole")
    assert same_end(tmp_path, tmp_path / "whole")


def test_an_error_in_the_last_one_comes_out_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = full_disk(monkeypatch, "epoch")
    with pytest.raises(CheckpointError, match="No space left on device"):
        train(tmp_path, save_async=True, epochs=1, save_every=100, callbacks=[full])


def test_it_needs_a_folder() -> None:
    with pytest.raises(ValueError, match="save_async needs checkpoint_dir"):
        train(None, save_async=True)


def test_a_writer_says_an_error_once() -> None:
    writer = Writer()

    def fail() -> None:
        raise OSError("no")

    writer.start(fail)
    with pytest.raises(OSError, match="no"):
        writer.wait()
    writer.wait()
    written: list[int] = []
    with writer:
        writer.start(lambda: written.append(1))
    assert written == [1]
    with pytest.raises(KeyError) as caught, writer:
        writer.start(fail)
        raise KeyError("first")
    assert "while saving: no" in caught.value.__notes__[0]


def test_copies_are_of_their_own(tmp_path: Path) -> None:
    x = torch.arange(6.0).reshape(2, 3)
    tree = {"x": x, "same": x, "turned": x.t(), "wide": x[:1].expand(4, 3)}
    saving = to_save(ToSave(tmp_path / "a", tree, step=1), copies=True)
    save(tmp_path / "b", tree, step=1)
    x.zero_()
    one, other = load(saving.write()).tree, load(newest(tmp_path / "b")).tree
    assert all(torch.equal(one[n], other[n]) for n in tree)
    assert one["x"].sum() == 15
