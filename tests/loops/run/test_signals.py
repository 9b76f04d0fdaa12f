"""Signals: the step is finished, the state saved, and the exit code says so."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fkd.loops import INTERRUPTED, Interrupted, LoopError
from fkd.loops._run.signals import listening

from ..training import LOADERS, batches, in_process, newest, same_end, train


@pytest.fixture(autouse=True, scope="module")
def _warm():
    train(None, epochs=1)


def signalling(number: int, after: int) -> Any:
    """A loader that sends its own process a signal while a batch is made."""
    given = 0

    def epoch(seed: int) -> Any:
        nonlocal given
        del seed
        for made in batches():
            if given == after:
                os.kill(os.getpid(), number)
            given += 1
            yield made

    return epoch


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_step_is_finished_and_saved(tmp_path, number):
    def run(folder: Path, loader: Any) -> None:
        train(folder, loader, save_every=100)

    assert in_process(run, tmp_path / "broken", signalling(number, 6)) == INTERRUPTED == 75
    assert newest(tmp_path / "broken").name == "step-00000007"
    assert in_process(run, tmp_path / "broken", batches()) == 0
    assert in_process(run, tmp_path / "whole", batches()) == 0
    assert same_end(tmp_path / "whole", tmp_path / "broken")


def test_a_signal_to_the_whole_group_that_ends_the_workers(tmp_path):
    """What a cluster does: SIGTERM to every process of the job."""

    def run(folder: Path) -> None:
        os.setpgrp()

        def group(event: Any) -> None:
            if event.step == 2:
                os.killpg(0, signal.SIGTERM)

        train(folder, LOADERS["workers"](), log_every=1, save_every=100, callbacks=[group])

    assert in_process(run, tmp_path) == INTERRUPTED
    assert newest(tmp_path).name in ("step-00000002", "step-00000003")


def test_the_exception_names_the_signal_and_the_handlers_are_put_back():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted) as caught:
        train(None, signalling(signal.SIGTERM, 1))
    assert caught.value.signal == "SIGTERM" and caught.value.code == 75
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_pressed_twice_it_stops_at_once():
    with pytest.raises(KeyboardInterrupt), listening():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_in_another_thread_it_runs_without_signals():
    ends: list[int] = []
    thread = threading.Thread(target=lambda: ends.append(train(None)[-1].step))
    thread.start()
    thread.join()
    assert ends == [10]


def test_a_loader_that_blocks_does_not_hold_up_the_save(tmp_path):
    def run(folder: Path) -> None:
        def epoch(seed: int) -> Any:
            del seed
            yield from batches()[:3]
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(50)
            raise AssertionError

        train(folder, epoch, save_every=100)

    began = time.monotonic()
    assert in_process(run, tmp_path / "broken") == INTERRUPTED
    assert time.monotonic() - began < 20
    assert newest(tmp_path / "broken").name == "step-00000003"
    train(tmp_path / "broken")
    train(tmp_path / "whole")
    assert same_end(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_whatever_ends_the_loader_the_state_is_saved(tmp_path, error):
    def epoch(seed: int) -> Any:
        del seed
        yield from batches()[:4]
        raise error

    with pytest.raises((error, LoopError)):
        train(tmp_path, epoch, save_every=100)
    assert newest(tmp_path).name == "step-00000004"
