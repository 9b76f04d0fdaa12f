"""One run for one folder."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from fkd.loops._base.errors import CheckpointError
from fkd.loops._checkpoint.lock import ensure_held, lock

fork = multiprocessing.get_context("fork")


def _hold(folder: Path, ready: Any) -> None:
    with lock(folder):
        ready.set()
        time.sleep(60)


def _holder(folder: Path) -> Any:
    ready = fork.Event()
    process = fork.Process(target=_hold, args=(folder, ready))
    process.start()
    assert ready.wait(30)
    return process


def test_a_second_run_is_refused_and_the_first_is_named(tmp_path: Path):
    process = _holder(tmp_path)
    try:
        with pytest.raises(CheckpointError) as caught, lock(tmp_path):
            pass
        message = str(caught.value)
        assert f"process {process.pid} on {socket.gethostname()}" in message
        assert str(tmp_path) in message
    finally:
        process.kill()
        process.join()


def test_a_killed_run_leaves_no_stale_lock(tmp_path: Path):
    process = _holder(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with lock(tmp_path):
        pass


def _hold_with_worker(folder: Path, worker: Any) -> None:
    with lock(folder):
        child = fork.Process(target=time.sleep, args=(60,))  # as a loader worker
        child.start()
        worker.send(child.pid)
        time.sleep(60)


def test_a_worker_that_outlives_a_killed_run_does_not_hold_the_lock(tmp_path: Path):
    receive, send = fork.Pipe(duplex=False)
    process = fork.Process(target=_hold_with_worker, args=(tmp_path, send))
    process.start()
    worker = receive.recv()
    time.sleep(0.2)
    with pytest.raises(CheckpointError), lock(tmp_path):
        pass
    process.kill()
    process.join()
    try:
        os.kill(worker, 0)  # still there
        with lock(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_it_is_let_go_at_the_end_and_after_an_error(tmp_path: Path):
    with lock(tmp_path / "new" / "folder") as path:
        assert path.parent == tmp_path / "new" / "folder"
        with pytest.raises(CheckpointError, match=f"process {os.getpid()}"), lock(path.parent):
            pass
    with pytest.raises(KeyError), lock(tmp_path):
        raise KeyError
    with lock(tmp_path):
        pass


def test_two_folders_are_two_locks(tmp_path: Path):
    with lock(tmp_path / "a"), lock(tmp_path / "b"):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be opened"), lock(tmp_path / "file"):
        pass


def test_a_deleted_lock_file_lets_nobody_in(tmp_path: Path):
    with lock(tmp_path) as path:
        path.unlink()
        with pytest.raises(CheckpointError, match="in use by another run"), lock(tmp_path):
            pass
    process = _holder(tmp_path)
    try:
        (tmp_path / ".lock").unlink()
        with pytest.raises(CheckpointError, match="in use by another run"), lock(tmp_path):
            pass
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_lock_that_is_a_link_is_refused_and_not_written_through(tmp_path: Path, link: Any):
    precious = tmp_path / "precious"
    precious.write_text("all of it")
    (tmp_path / "run").mkdir()
    link(precious, tmp_path / "run" / ".lock")
    with pytest.raises(CheckpointError, match=r"[Dd]elete"), lock(tmp_path / "run"):
        pass
    assert precious.read_text() == "all of it"


def test_a_fifo_for_a_lock_is_refused(tmp_path: Path):
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(CheckpointError, match="not a file of its own"), lock(tmp_path):
        pass


def _message(folder: Path, send: Any) -> None:
    try:
        ensure_held(folder)
        send.send("")
    except CheckpointError as error:
        send.send(str(error))


def test_a_forked_process_does_not_hold_the_folder(tmp_path: Path):
    receive, send = fork.Pipe(duplex=False)
    with lock(tmp_path):
        ensure_held(tmp_path)
        child = fork.Process(target=_message, args=(tmp_path, send))
        child.start()
        assert f"belongs to the run of process {os.getpid()}" in receive.recv()
        child.join()
        ensure_held(tmp_path)


def test_a_folder_that_was_deleted_or_replaced_is_not_held(tmp_path: Path):
    run = tmp_path / "run"
    with lock(run):
        run.rename(tmp_path / "moved")
        with pytest.raises(CheckpointError, match="deleted or replaced"):
            ensure_held(run)
        with lock(run), pytest.raises(CheckpointError, match="in use"), lock(tmp_path / "moved"):
            pass
    with pytest.raises(CheckpointError, match="deleted or replaced"):
        ensure_held(run)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def no_locks(descriptor: int, *, blocking: bool) -> bool:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fkd.loops._checkpoint.lock.lock_descriptor", no_locks)
    with lock(tmp_path):
        ensure_held(tmp_path)
    assert "has no locks" in caplog.text and "folder of its own" in caplog.text


def test_any_other_error_of_a_lock_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int, *, blocking: bool) -> bool:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("fkd.loops._checkpoint.lock.lock_descriptor", broken)
    with pytest.raises(CheckpointError, match="Input/output error"), lock(tmp_path):
        pass


def _nothing_there(folder: Path) -> str:
    folder.symlink_to("nowhere")
    return "is a link to nowhere, which is not there"


def _a_file(folder: Path) -> str:
    folder.write_text("a file")
    return "is a file, and not a folder"


def _a_folder_for_a_lock(folder: Path) -> str:
    (folder / ".lock").mkdir(parents=True)
    return "it is not a file; delete it"


@pytest.mark.parametrize("obstacle", [_nothing_there, _a_file, _a_folder_for_a_lock])
def test_what_stands_in_the_way_is_named(tmp_path: Path, obstacle: Any) -> None:
    why = obstacle(tmp_path / "run")
    with pytest.raises(CheckpointError, match=why), lock(tmp_path / "run"):
        pass


@pytest.mark.parametrize("odd", [b"", b" []", b' {"pid": {}, "host": "h", "since": 3}',
                                 b' {"pid": 1, "host": "\\u001b[31m", "since": ""}'])  # fmt: skip
def test_a_name_that_is_none_is_not_shown(tmp_path: Path, odd: bytes) -> None:
    with lock(tmp_path) as path:
        path.write_bytes(odd)
        with pytest.raises(CheckpointError, match="its process is not known"), lock(tmp_path):
            pass
