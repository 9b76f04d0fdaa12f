"""Laws of a second start: what it says, what it refuses, and what it never touches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fkd
from fkd import batch, student, teacher, term
from fkd.loops import (
    CheckpointError,
    DamagedError,
    MismatchError,
    NonFiniteError,
    best,
    fit,
    load,
    load_latest,
    read_log,
    restore,
    train_step,
)
from fkd.losses import cross_entropy, kl

from ..checkpoint.test_manifest import forge
from ..training import Net, adamw, batches, in_process, make, newest, objective, same_end, train

# -- states that are not finite -------------------------------------------------------------


def _huge_at(step: int) -> float:
    return 1e60 if step == 4 else 1.0


def test_a_run_that_became_nan_keeps_its_last_finite_checkpoint(tmp_path, caplog):
    for start in range(3):
        options = {"options": {"lr": _huge_at}, "save_every": 2, "keep_last": 2}
        with pytest.raises(NonFiniteError, match=r"state itself is not finite.*step-00000004"):
            train(tmp_path, epochs=4 + start, log_every=1, max_nonfinite=3, **options)
        kept = [load(p).finite for p in sorted(tmp_path.iterdir()) if p.name.startswith("step-")]
        assert kept.count(True) == 1 and kept[0]
    assert "state itself is not finite (" in caplog.text
    step, state = make(lr=_huge_at)
    events = fit(step, state, batches(), epochs=9, checkpoint_dir=tmp_path, progress=False)
    message = next(events).message
    assert "not finite" in message and "the newest finite one is step-00000004" in message


def test_what_was_infinite_from_the_beginning_is_no_fault(tmp_path):
    masked = objective()
    module = masked.program.model("student").module
    module.register_buffer("mask", torch.tensor([0.0, float("-inf")]))  # type: ignore[union-attr]
    goal = fkd.Objective(
        {"ce": term(cross_entropy, student.logits, batch["y"])},
        student=fkd.trainable(module),  # type: ignore[arg-type]
    )
    step = train_step(goal, adamw, compile=False)
    list(fit(step, step.init(), batches(), steps=2, checkpoint_dir=tmp_path, progress=False))
    assert load_latest(tmp_path).finite is True  # type: ignore[union-attr]


# -- what the result depends on -------------------------------------------------------------


def _teacher_buffer() -> fkd.Objective:
    changed = objective()
    changed.program.model("teacher").module.norm.running_mean.fill_(7)  # type: ignore[union-attr]
    return changed


def _teacher_value(index: int) -> fkd.Objective:
    changed = objective()
    weight = changed.program.model("teacher").module.first.weight  # type: ignore[union-attr]
    weight.data.view(-1)[index] += 1e-6
    return changed


def _with(weight: Any = 1.0, loss: Any = kl, dropout: float = 0.3, **models: Any) -> fkd.Objective:
    torch.manual_seed(0)
    return fkd.Objective(
        {"kd": term(loss, student.logits, teacher.logits, weight=weight)},
        student=fkd.trainable(Net(6, dropout)),
        teacher=fkd.frozen(Net(8), **models),
    )


def _scaled(factor: float) -> Any:
    def loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return factor * (a - b).square().mean(-1)

    return loss


def _table(last: float) -> Any:
    table = torch.ones(3)
    table[2] = last
    return term(kl, student.logits * table, teacher.logits)


def _by_table(last: float) -> fkd.Objective:
    torch.manual_seed(0)
    return fkd.Objective(
        {"kd": _table(last)}, student=fkd.trainable(Net(6)), teacher=fkd.frozen(Net(8))
    )


@pytest.mark.parametrize(
    ("here", "there", "difference"),
    [
        (objective, _teacher_buffer, "models/teacher/values"),
        *((objective, lambda i=i: _teacher_value(i), "models/teacher/values") for i in (0, 7, 39)),
        (_with, lambda: _with(dropout=0.4), "models/student/modules/drop"),
        (lambda: _with(lambda s: 0.5), lambda: _with(lambda s: 0.6), "terms/kd"),
        (lambda: _with(lambda s: s + 0.5), lambda: _with(lambda s: s * 0.5), "terms/kd"),
        (lambda: _with(1.0, _scaled(2.0)), lambda: _with(1.0, _scaled(3.0)), "terms/kd"),
        (lambda: _by_table(1.0), lambda: _by_table(2.0), "terms/kd"),
        (
            lambda: _with(inputs=lambda b: {"x": b["x"]}),
            lambda: _with(inputs=lambda b: {"x": -b["x"]}),
            "models/teacher/model",
        ),
    ],
)
def test_another_run_is_noticed(tmp_path, here, there, difference):
    def start(made: Any) -> None:
        step = train_step(made(), adamw, compile=False)
        list(fit(step, step.init(), batches(), steps=2, checkpoint_dir=tmp_path, progress=False))

    start(here)
    start(here)
    with pytest.raises(MismatchError, match=difference):
        start(there)


def test_a_set_of_words_is_the_same_in_every_process(tmp_path):
    code = """
import sys, torch, fkd
from fkd import batch, student, teacher, term
from tests.loops.training import Net, adamw, batches
def loss(a, b, *, names, nested): return (a - b).square().mean(-1)
names = frozenset(["attention", "hidden", "logits", "values"])
kd = term(loss, student.logits, teacher.logits, names=names, nested={"a": (names, [names])})
objective = fkd.Objective({"kd": kd}, student=fkd.trainable(Net(6)), teacher=fkd.frozen(Net(8)))
step = fkd.loops.train_step(objective, adamw, compile=False)
events = fkd.loops.fit(step, step.init(), batches(), steps=int(sys.argv[2]), progress=False,
                       checkpoint_dir=sys.argv[1])
print(next(iter(events)).message); list(events)
"""
    code = code.replace("import sys, torch, fkd", "import sys, torch, fkd\ntorch.manual_seed(0)")
    for seed in range(3):
        environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
        command = [sys.executable, "-c", code, str(tmp_path), str(seed + 1)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert ("resumed at step" in done.stdout) == (seed > 0)


def test_another_seed_is_refused(tmp_path):
    train(tmp_path, epochs=1)
    step, _ = make()
    with pytest.raises(MismatchError, match=r"seed 3, and here it is 4.*step.init\(seed=3\)"):
        list(fit(step, step.init(seed=4), batches(), epochs=2, checkpoint_dir=tmp_path))
    assert restore(step, tmp_path).seed == 3


def test_other_settings_are_said(tmp_path, caplog):
    train(tmp_path, epochs=1)
    larger = [{k: torch.cat([v, v]) for k, v in b.items()} for b in batches(4)]
    message = train(tmp_path, larger, epochs=2)[0].message
    assert "another setting: batch size: 5 in the checkpoint, 10 here" in message
    assert "another setting: batches an epoch: 5 in the checkpoint, 4 here" in message
    assert message.count("another setting") == 2 and "batch size" in caplog.text
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert f"threads: {threads} in the" in train(tmp_path, larger, epochs=3)[0].message
    finally:
        torch.set_num_threads(threads)


# -- names ----------------------------------------------------------------------------------


def test_models_with_dots_in_their_names_are_resumed(tmp_path):
    def start(folder: Path, epochs: int) -> None:
        torch.manual_seed(0)
        goal = fkd.Objective(
            {"ce": term(cross_entropy, fkd.ref("a.b").logits, batch["y"])},
            **{"a.b": fkd.trainable(Net(6))},
        )
        step = train_step(goal, adamw, compile=False)
        list(fit(step, step.init(), batches(), epochs=epochs, checkpoint_dir=folder))

    start(tmp_path / "broken", 1)
    start(tmp_path / "broken", 2)
    start(tmp_path / "whole", 2)
    assert same_end(tmp_path / "broken", tmp_path / "whole")


@pytest.mark.parametrize("name", ["step-by-step", "step-1", "step-00000010"])
def test_a_run_folder_may_be_named_like_a_checkpoint(tmp_path, name):
    train(tmp_path / name)
    step, _ = make()
    assert restore(step, tmp_path / name).step == 10
    assert restore(step, newest(tmp_path / name)).step == 10


# -- another run's checkpoints --------------------------------------------------------------


def test_without_resume_nothing_of_the_earlier_run_is_used(tmp_path):
    train(tmp_path, epochs=1, dev=batches(2))
    first = load(best(tmp_path, higher_is_better=False)).metric  # type: ignore[arg-type]
    train(tmp_path, epochs=1, dev=[{**b, "x": 100 * b["x"]} for b in batches(2)], resume=False)
    second = load(best(tmp_path, higher_is_better=False)).metric  # type: ignore[arg-type]
    assert first is not None and second is not None and second > first
    for path in tmp_path.glob("step-*"):
        (path / "state.safetensors").write_bytes(b"")
    with pytest.raises(DamagedError, match="no checkpoint in"):
        load_latest(tmp_path)


# -- trees with right checksums -------------------------------------------------------------


def _tree(content: Any, *path: str) -> Any:
    """The node of an encoded tree."""
    for name in path:
        content = next(v for k, v in content["dict"] if k == name)
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["dict"].clear(), "its tree has no field state"),
        (lambda t: t["dict"].append(["more", 1]), "unknown fields: more"),
        (lambda t: _tree(t, "state")["dict"].pop(0), "its state has no field trainable"),
        (lambda t: _tree(t, "state", "trainable")["dict"].clear(), "no trainable "),
        (lambda t: _tree(t, "state", "trainable", "student")["dict"].pop(), "no trainable student"),
        (lambda t: _tree(t, "state", "buffers", "student")["dict"].pop(), "no buffers student"),
        (lambda t: _tree(t, "state", "optimizer")["dict"][0].__setitem__(0, "x.y"), "x.y, which"),
        (lambda t: _tree(t, "state", "loss_state")["dict"].clear(), "the term 'centred'"),
        (lambda t: _tree(t, "state")["dict"][-2].__setitem__(1, "ten"), "step is 'ten'"),
        (lambda t: _tree(t, "position")["dict"].pop(), "its position has no field"),
        (lambda t: _tree(t, "position")["dict"][0].__setitem__(1, -3), "epoch is -3"),
        (lambda t: _tree(t, "position")["dict"][1].__setitem__(1, None), "index is None"),
        (lambda t: _tree(t, "window")["dict"].pop(), "window has no field rows"),
        (lambda t: _tree(t, "window", "names").append("more"), "rows of another length"),
        (lambda t: _tree(t, "settings")["dict"].append(["threads", [1]]), "its settings/threads"),
    ],
)
def test_a_tree_of_another_form_is_damage_and_the_one_before_is_taken(tmp_path, change, message):
    train(tmp_path / "broken", epochs=None, steps=9)
    train(tmp_path / "whole")
    forge(newest(tmp_path / "broken"), lambda content: change(content["tree"]))
    start = train(tmp_path / "broken")[0].message
    assert "resumed at step 6" in start and message in start
    assert same_end(tmp_path / "broken", tmp_path / "whole")


# -- the log --------------------------------------------------------------------------------


def test_a_finished_run_that_is_called_again_adds_no_line(tmp_path):
    options = {"log_dir": tmp_path, "dev": batches(2), "log_every": 3}
    train(tmp_path, **options)
    lines = (tmp_path / "metrics.jsonl").read_bytes()
    for _ in range(3):
        train(tmp_path, **options)
    assert (tmp_path / "metrics.jsonl").read_bytes() == lines


@pytest.mark.parametrize("kind", ["log", "evaluate", "epoch", "save"])
@pytest.mark.parametrize("at", [5, 10])
def test_killed_between_log_and_checkpoint_no_line_is_there_twice(tmp_path, kind, at):
    def run(folder: Path, number: int) -> None:
        def callback(event: Any) -> None:
            if (event.kind, event.step) == (kind, number):
                os._exit(9)

        options = {"save_every": 5, "log_every": 5, "dev": batches(2), "callbacks": [callback]}
        train(folder, log_dir=folder, **options)

    assert in_process(run, tmp_path, at) == 9
    assert in_process(run, tmp_path, 99) == 0
    lines = [(r["step"], r["kind"]) for r in read_log(tmp_path / "metrics.jsonl")]
    assert lines == [(s, k) for s in (5, 10) for k in ("train", "eval")]


# -- folders --------------------------------------------------------------------------------


def test_a_forked_process_that_fails_saves_nothing(tmp_path):
    def run(folder: Path) -> None:
        def fork(event: Any) -> None:
            if event.step == 4 and os.fork() == 0:
                raise RuntimeError("in the child")

        try:
            train(folder, log_dir=folder, log_every=1, tensorboard=True, callbacks=[fork])
        except RuntimeError as error:
            print(error, getattr(error, "__notes__", ""))
            os._exit(0)

    assert in_process(run, tmp_path) == 0
    assert [p.name for p in sorted(tmp_path.glob("step-*"))] == [
        f"step-{s:08d}" for s in (6, 9, 10)
    ]
    assert [r["step"] for r in read_log(tmp_path / "metrics.jsonl")] == list(range(1, 11))


def test_a_forked_process_that_goes_on_is_told_to_end(tmp_path):
    def run(folder: Path) -> None:
        parent = os.getpid()

        def fork(event: Any) -> None:
            if event.step == 4 and os.getpid() == parent:
                os.fork()

        try:
            train(folder, log_dir=folder, log_every=1, callbacks=[fork])
        except CheckpointError as error:
            (folder / "said").write_text(str(error))
            os._exit(0)

    assert in_process(run, tmp_path) == 0
    assert [r["step"] for r in read_log(tmp_path / "metrics.jsonl")] == list(range(1, 11))


def test_a_run_whose_folder_is_deleted_ends_and_says_so(tmp_path):
    run = tmp_path / "run"

    def delete(event: Any) -> None:
        if event.step == 4:
            run.rename(tmp_path / "moved")

    with pytest.raises(CheckpointError, match="deleted or replaced while a run was writing"):
        train(run, log_dir=run, log_every=1, callbacks=[delete])
    assert not run.exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json", "check.txt", "graph.svg"])
def test_nothing_is_written_through_a_link(tmp_path, name):
    precious, run = tmp_path / "precious", tmp_path / "run"
    precious.write_text("all of it")
    run.mkdir()
    (run / name).symlink_to(precious)
    train(run, log_dir=run, log_every=1)
    assert precious.read_text() == "all of it" and not (run / name).is_symlink()


def test_the_manifest_says_whether_it_is_finite(tmp_path):
    train(tmp_path)
    text = json.loads((newest(tmp_path) / "manifest.json").read_text())
    assert text["manifest"]["finite"] is True
