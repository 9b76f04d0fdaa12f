"""What a run tries before its first step, prepares before each, shows, and how it goes on."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest
import torch

import fkd
from fkd import batch, student
from fkd.loops import LoopError, State, fit, run
from fkd.loops._log.progress import Lines
from fkd.loops._run.display import Display, open_display

from ..data.test_position import Stream
from ..training import batches, make, newest, same_end, train

# -- before the first step ------------------------------------------------------------------


def two(logits: Any, labels: Any) -> Any:
    return logits


@pytest.mark.parametrize(
    ("dev", "metrics", "message"),
    [
        ([{"x": torch.ones(3, 5)}], {}, "evaluation fails on the first batch of dev.*'y'"),
        (None, {"agree": two}, "'agree' is the function two.*fkd.metric.two, student.logits"),
        (None, {"f1": fkd.loops.collect(two, student.logits)}, "'f1' collects 1 refs"),
        (None, {"f1": fkd.loops.collect(two, batch.y, batch["no"])}, "evaluation fails.*'no'"),
        ([], {}, "evaluate: the loader gave no batch"),
    ],
)  # fmt: skip
def test_what_an_evaluation_will_meet_is_met_before_the_first_step(dev, metrics, message):
    step, state = make()
    drawn: list[int] = []
    loader = lambda seed: (drawn.append(0) or b for b in batches())
    with pytest.raises(ValueError, match=f"(?s){message}"):
        run(step, state, loader, epochs=1, dev=batches() if dev is None else dev, metrics=metrics)
    assert drawn == []


def test_trying_does_not_call_what_collects_and_changes_no_bit(tmp_path):
    calls: list[int] = []
    metrics = {"n": fkd.loops.collect(lambda y: float(calls.append(len(y)) or 1), batch["y"])}
    more = {"dev": batches(), "metrics": metrics, "epochs": 1}
    train(tmp_path / "a", **more)
    assert calls == [5]
    train(tmp_path / "b", epochs=1)
    ends = [newest(tmp_path / name) for name in "ab"]
    a, b = (fkd.loops.load(path).tree["state"]["trainable"]["student"] for path in ends)
    assert all(torch.equal(a[name], b[name]) for name in a)


# -- prepare --------------------------------------------------------------------------------


def noisy(state: State, given: Any) -> Any:
    """Depends on the state, the step and the generators."""
    assert not torch.is_grad_enabled()
    mean = state.trainable["student"]["head.bias"].mean()
    return {**given, "x": given["x"] + mean + 0.1 * torch.randn(given["x"].shape)}


def test_prepare_is_exact_when_a_run_is_resumed_and_not_run_for_what_is_skipped(tmp_path):
    steps: list[int] = []

    def seen(state: State, given: Any) -> Any:
        steps.append(state.step)
        return noisy(state, given)

    train(tmp_path / "whole", prepare=seen)
    train(tmp_path / "cut", prepare=seen, epochs=None, steps=7)
    train(tmp_path / "cut", prepare=seen)
    assert same_end(tmp_path / "whole", tmp_path / "cut")
    assert steps == [*range(10), *range(10)]
    train(tmp_path / "plain")
    assert not same_end(tmp_path / "whole", tmp_path / "plain")


def test_what_fails_in_prepare_says_so(tmp_path):
    def fails(state: State, given: Any) -> Any:
        return given if state.step < 2 else 1 / 0

    with pytest.raises(LoopError, match=r"batch 2 of epoch 0 \(step 2\): prepare failed: Zero"):
        train(tmp_path, prepare=fails)
    assert newest(tmp_path).name == "step-00000002"
    text: Any = lambda state, given: "text"
    with pytest.raises(LoopError, match="a batch is a str without a tensor"):
        train(None, prepare=text)


# -- the place in the data ------------------------------------------------------------------


class Labelled(Stream):
    def __iter__(self) -> Any:
        for made in super().__iter__():
            g = torch.Generator().manual_seed(self.at)
            yield {"x": torch.randn(4, 5, generator=g) + made["x"][0], "y": torch.arange(4) % 3}


@pytest.mark.parametrize("steps", [6, 7])
def test_a_loader_that_says_its_place_is_put_there(tmp_path, steps):
    train(tmp_path / "whole", Labelled())
    train(tmp_path / "cut", Labelled(), epochs=None, steps=steps)
    loader = Labelled()
    train(tmp_path / "cut", loader)
    assert same_end(tmp_path / "whole", tmp_path / "cut") and loader.made == 10 - steps


def test_a_place_that_a_checkpoint_cannot_hold_is_said_so(tmp_path, caplog):
    class Odd(Labelled):
        def state_dict(self) -> dict[str, Any]:
            return {"at": object()}

    train(tmp_path / "whole", Labelled())
    train(tmp_path / "cut", Odd(), epochs=None, steps=7)
    assert caplog.text.count("state_dict() cannot be kept") == 1
    train(tmp_path / "cut", Odd())
    assert same_end(tmp_path / "whole", tmp_path / "cut")


def test_epochs_are_a_total_also_for_a_state_in_memory(tmp_path, caplog):
    train(tmp_path / "whole", epochs=2)
    for first in (5, 7):  # at the end of an epoch, and inside one
        step, state = make()
        state = run(step, state, batches(), steps=first, progress=False).state
        folder = tmp_path / str(first)
        last = run(step, state, batches(), epochs=2, checkpoint_dir=folder, progress=False)
        assert last.state.step == 10
        a = fkd.loops.load(newest(folder)).tree["state"]["trainable"]["student"]
        b = fkd.loops.load(newest(tmp_path / "whole")).tree["state"]["trainable"]["student"]
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert caplog.text == ""
    done = run(step, last.state, batches(), epochs=2, progress=False)
    assert done.state.step == 10 and "nothing is left to do" in caplog.text
    with pytest.raises(ValueError, match=r"the loader has no length.*Give steps"):
        run(step, done.state, lambda seed: batches(), epochs=3, progress=False)


def test_a_batch_without_examples_is_left_out_and_said_so(tmp_path, caplog):
    loader = batches()
    empty = {"x": torch.ones(0, 5), "y": torch.ones(0, dtype=torch.long)}
    train(tmp_path / "with", [*loader[:2], empty, *loader[2:]])
    train(tmp_path / "without", loader)
    assert "batch 2 of epoch 0 (step 2) has no examples and is left out" in caplog.text
    with pytest.raises(LoopError, match="only batches without examples in epoch 0"):
        train(None, [empty])
    trees = [fkd.loops.load(newest(tmp_path / n)).tree["state"] for n in ("with", "without")]
    a, b = (tree["trainable"]["student"] for tree in trees)
    assert trees[0]["step"] == 10 and all(torch.equal(a[name], b[name]) for name in a)


def test_an_interrupt_in_the_loader_is_saved(tmp_path):
    def stops(seed: int) -> Any:
        yield from batches()[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, stops, save_every=100)
    assert newest(tmp_path).name == "step-00000002"


# -- what is shown --------------------------------------------------------------------------


def test_progress_is_shown_without_a_folder_and_on_standard_error(capsys):
    step, state = make()
    run(step, state, batches(), epochs=1, log_every=2, dev=batches())
    shown = capsys.readouterr()
    assert shown.out == "" and "step 2/5 (40 %)" in shown.err and "agreement" in shown.err
    assert shown.err.splitlines()[-1].startswith("step 5/5")
    step, state = make()
    run(step, state, batches(), epochs=1, progress=False)
    assert capsys.readouterr() == ("", "")


def test_a_run_without_standard_error(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    step, state = make()
    assert run(step, state, batches(), epochs=1).state.step == 5

    class Closed:
        closed = True

        def isatty(self) -> bool:
            raise ValueError("I/O operation on closed file")

    monkeypatch.setattr(sys, "stderr", Closed())
    step, state = make()
    assert run(step, state, batches(), epochs=1).state.step == 5


class Broken:
    def write(self, text: str) -> int:
        raise BrokenPipeError("nobody reads")

    def flush(self) -> None: ...


def test_what_cannot_be_shown_does_not_end_a_run():
    display = Display(Lines(Broken()))
    display.message("lost")
    display.write({"loss/total": 1.0}, step=1, kind="train")
    with display.waiting("compiling"):
        pass
    display.close()


class Kept:
    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...


def test_a_long_wait_is_said_with_its_seconds():
    stream = Kept()
    display = Display(Lines(stream), patience=0.05)
    with display.waiting("compiling the step", done="compiled the step"):
        time.sleep(0.2)
    lines = stream.text.splitlines()
    assert lines[0].startswith("compiling the step, 0.1 s so far")
    assert lines[-1].startswith("compiled the step in 0.2 s") and len(lines) <= 4
    with display.waiting("quick", done="quick"):
        pass
    assert "quick" not in stream.text


def test_batches_that_are_drawn_again_are_said_so(tmp_path, capsys):
    train(tmp_path, lambda seed: iter(batches()), epochs=None, steps=7)
    capsys.readouterr()
    train(tmp_path, lambda seed: iter(batches()), progress=True)
    shown = capsys.readouterr().err
    assert "resumed at step 7" in shown and "drawing the 2 batches before the place" in shown
    train(tmp_path / "list", epochs=None, steps=7)
    train(tmp_path / "list", progress=True)
    assert "before the place" not in capsys.readouterr().err


@pytest.mark.compile
def test_compiling_is_said(capsys, monkeypatch):
    monkeypatch.setattr(Display.__init__, "__kwdefaults__", {"patience": 0.01})
    step, state = make(compile={"backend": "aot_eager"})
    list(fit(step, state, batches()[:1], epochs=1))
    assert "compiling the step, 0." in capsys.readouterr().err


def test_nothing_is_shown_when_nothing_shall_be():
    assert open_display(shown=False, total=None, initial=0)._progress is None
