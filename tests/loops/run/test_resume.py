"""Laws of resuming: a run that was killed ends with the bits of one that was not."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fkd.loops import CheckpointError, fit, restore, run
from fkd.loops._checkpoint.checkpoint import load, load_latest
from fkd.loops._log.lines import read_log

from ..training import (
    LOADERS,
    batches,
    in_process,
    kill_at,
    killed_batches,
    make,
    newest,
    same_end,
    spawn,
    train,
)


@pytest.fixture(autouse=True, scope="module")
def _warm():
    """What torch imports at its first use is imported before the processes are forked."""
    train(None, epochs=1)


def killed_and_whole(tmp_path: Path, loader: str, at: int, **options: Any) -> tuple[Path, Path]:
    """The folders of a run that was killed after step `at` and resumed, and of one that was not."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"

    def run(folder: Path, **more: Any) -> None:
        train(folder, LOADERS[loader](), **{**options, **more})

    assert in_process(run, whole) == 0
    # Logged at every step, so that there is an event to be killed at.
    assert in_process(run, broken, callbacks=[kill_at(at)], log_every=1) == -signal.SIGKILL
    assert load_latest(broken) is not None and load_latest(broken).step < at  # type: ignore[union-attr]
    assert in_process(run, broken) == 0
    return whole, broken


@pytest.mark.parametrize("at", [4, 5, 8])
@pytest.mark.parametrize("loader", ["list", "shuffled"])
def test_killed_anywhere_it_ends_with_the_same_bits(tmp_path, loader, at):
    assert same_end(*killed_and_whole(tmp_path, loader, at))


@pytest.mark.parametrize("loader", ["function", "own generator", "workers"])
def test_whatever_makes_the_batches(tmp_path, loader):
    assert same_end(*killed_and_whole(tmp_path, loader, 8))


@pytest.mark.parametrize("options", [{"accumulate": 2}, {"precision": "bf16"}])
def test_however_the_step_is_made(tmp_path, options):
    assert same_end(*killed_and_whole(tmp_path, "shuffled", 7, options=options))


@pytest.mark.parametrize("evaluate_every", [2, None])
def test_evaluation_in_between_changes_nothing(tmp_path, evaluate_every):
    more = {"dev": LOADERS["shuffled"](), "evaluate_every": evaluate_every, "patience": 9}
    assert same_end(*killed_and_whole(tmp_path, "shuffled", 7, **more))


@pytest.mark.compile
def test_compiled(tmp_path):
    step, state = make(compile={"backend": "aot_eager"})
    step(state, batches()[0])  # compiled once, for all three processes
    whole, broken = tmp_path / "whole", tmp_path / "broken"

    def run(folder: Path, after: int) -> None:
        loader = killed_batches(batches()[:2], after)  # of one shape
        list(fit(step, step.init(3), loader, epochs=3, save_every=2, checkpoint_dir=folder))

    for folder, after, code in ((whole, 99, 0), (broken, 3, -signal.SIGKILL), (broken, 99, 0)):
        assert in_process(run, folder, after) == code
    assert same_end(whole, broken)


def test_runs_of_another_seed_differ(tmp_path):
    """The comparison can fail."""
    for name, seed in (("a", 0), ("b", 1)):
        step, state = make()
        state = state._replace(seed=seed)
        run(step, state, batches(), epochs=1, checkpoint_dir=tmp_path / name)
    assert not same_end(tmp_path / "a", tmp_path / "b")


def test_everything_that_moves_is_kept(tmp_path):
    train(tmp_path, batches(bad=2))
    tree = load(newest(tmp_path)).tree
    held = tree["state"]
    assert set(held["trainable"]) == {"student", "project"}
    assert set(held["frozen"]) == {"slow"}  # and never the teacher
    assert set(held["buffers"]) == {"student", "slow"}
    assert set(held["optimizer"]["student.head.weight"]) == {"step", "exp_avg", "exp_avg_sq"}
    assert held["loss_state"]["centred"][0].abs().sum() > 0
    assert held["skipped"] == 2 and (held["step"], held["seed"]) == (10, 3)
    assert (tree["position"]["epoch"], tree["position"]["index"]) == (2, 0)


def test_the_log_of_a_resumed_run_is_that_of_the_whole_run(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"

    def run(folder: Path, after: int) -> None:
        train(folder, killed_batches(batches(), after), log_dir=folder)

    for folder, after in ((whole, 99), (broken, 9), (broken, 99)):
        in_process(run, folder, after)
    timed = ("time", "examples_per_s", "compile_s")
    logs = [
        [{k: v for k, v in r.items() if k not in timed} for r in read_log(f / "metrics.jsonl")]
        for f in (whole, broken)
    ]
    assert [r["step"] for r in logs[0]] == [4, 8, 10]  # the window of 8 began before step 6
    assert logs[0] == logs[1]


def test_killed_at_random_moments(tmp_path):
    """From outside, at any moment: also while it saves, loads or starts."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    rng, kills = random.Random(0), 0

    def run(folder: Path, delay: float) -> None:
        def wait(event: Any) -> None:
            time.sleep(delay)

        train(folder, LOADERS["shuffled"](), epochs=3, save_every=1, log_every=1, callbacks=[wait])

    assert in_process(run, whole, 0.0) == 0
    for _ in range(12):
        process = spawn(run, broken, 0.02)
        process.join(rng.uniform(0.15, 0.5))
        if process.exitcode is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
    assert kills >= 3
    assert in_process(run, broken, 0.0) == 0
    assert same_end(whole, broken)


def test_killed_while_a_batch_is_made(tmp_path):
    def run(folder: Path, after: int) -> None:
        train(folder, killed_batches(batches(), after))

    assert in_process(run, tmp_path / "broken", 4) == -signal.SIGKILL
    assert in_process(run, tmp_path / "broken", 100) == 0
    assert in_process(run, tmp_path / "whole", 100) == 0
    assert same_end(tmp_path / "whole", tmp_path / "broken")


def test_a_run_that_is_done_is_not_done_again(tmp_path):
    train(tmp_path)
    before = newest(tmp_path), (newest(tmp_path) / "manifest.json").read_bytes()
    again = train(tmp_path)
    assert [e.kind for e in again] == ["start", "end"]
    assert "resumed at step 10" in again[0].message and again[-1].message == "2 epochs are done"
    assert before == (newest(tmp_path), (newest(tmp_path) / "manifest.json").read_bytes())


def test_a_run_that_has_more_epochs_behind_it_says_so(tmp_path):
    train(tmp_path)
    assert train(tmp_path, epochs=1)[-1].message == "1 epoch is done (the run has 2 behind it)"


def test_a_resumed_run_has_all_of_its_evaluations(tmp_path):
    options: dict[str, Any] = {"dev": batches(), "evaluate_every": 3}
    whole = train(None, LOADERS["list"](), **options)[-1].evaluations
    assert [row["step"] for row in whole] == [3.0, 6.0, 9.0, 10.0]
    broken, _ = killed_and_whole(tmp_path, "list", 7, **options)
    done = train(broken, LOADERS["list"](), **options)
    assert [e.kind for e in done] == ["start", "end"] and done[-1].evaluations == whole
    best = min(whole, key=lambda row: row["loss/total"])
    assert done[-1].values["best_step"] == best["step"]


def test_more_epochs_go_on_where_it_ended(tmp_path):
    train(tmp_path / "two")
    train(tmp_path / "two", epochs=3)
    train(tmp_path / "three", epochs=3)
    assert same_end(tmp_path / "two", tmp_path / "three")


def test_resume_false_begins_anew(tmp_path):
    train(tmp_path, epochs=1)
    events = train(tmp_path, epochs=1, resume=False)
    assert events[0].message.startswith("from the beginning; ") and events[-1].step == 5
    assert "earlier-1" in events[0].message
    assert load_latest(tmp_path / "earlier-1").step == 5  # type: ignore[union-attr]


def test_a_damaged_checkpoint_is_skipped_and_said_so(tmp_path, caplog):
    train(tmp_path / "whole")
    train(tmp_path / "broken", epochs=None, steps=9)
    damaged = newest(tmp_path / "broken") / "state.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    events = train(tmp_path / "broken")
    assert "resumed at step 6" in events[0].message
    assert "step-00000009" in events[0].message and "step-00000009" in caplog.text
    assert same_end(tmp_path / "whole", tmp_path / "broken")


def test_restore_gives_the_state_without_the_run(tmp_path):
    last = train(tmp_path)[-1].state
    step, _ = make()
    for path in (tmp_path, newest(tmp_path)):
        found = restore(step, path)
        assert found.step == 10
        for name, held in last.trainable.items():
            for key, value in held.items():
                assert torch.equal(found.trainable[name][key], value)
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        restore(step, tmp_path / "nowhere")
