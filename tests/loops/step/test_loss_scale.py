"""Steps in float16: the loss is scaled on the way back, and the scale is part of the state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fkd
from fkd import batch, student, teacher, term
from fkd.loops import State, TrainStep, fit, run, train_step
from fkd.loops._run.resume import to_tree
from fkd.loops._step import loss_scale
from fkd.losses import kl, mse

ROWS = [{"x": torch.randn(6, 4, generator=torch.Generator().manual_seed(i))} for i in range(8)]


def net(seed: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.BatchNorm1d(16), nn.Linear(16, 3))


def goal(weight: Any = 1.0) -> fkd.Objective:
    inputs = {"inputs": lambda row: row["x"]}
    return fkd.Objective(
        {"kd": term(kl, student.logits, teacher.logits, weight=weight)},
        student=fkd.trainable(net(0), **inputs),
        teacher=fkd.frozen(net(1), **inputs),
    )


def step_of(objective: fkd.Objective | None = None, **options: Any) -> TrainStep:
    options = {"precision": "fp16", "compile": False, **options}
    return train_step(objective or goal(), lambda p: torch.optim.AdamW(p, lr=1e-2), **options)


def trained(step: TrainStep, batches: list[dict[str, torch.Tensor]]) -> tuple[State, list[Any]]:
    state, every = step.init(seed=1), []
    for one in batches:
        state, metrics = step(state, one)
        every.append(metrics)
    return state, every


def factor(state: State) -> float:
    assert state.loss_scale is not None
    return float(state.loss_scale["factor"])


def test_it_is_near_the_step_in_float32() -> None:
    halved, measured = trained(step_of(), ROWS)
    full, expected = trained(step_of(precision="fp32"), ROWS)
    assert full.loss_scale is None
    for a, b in zip(measured, expected, strict=True):
        assert torch.allclose(a["loss/total"], b["loss/total"], rtol=2e-2)
        assert torch.allclose(a["grad_norm/total"], b["grad_norm/total"], rtol=2e-2)
    assert float(measured[-1]["loss_scale"]) == factor(halved) == 2.0**16
    assert all(p.dtype == torch.float32 for p in halved.trainable["student"].values())
    assert halved.frozen["teacher"]["0.weight"].dtype == torch.float16


def test_small_gradients_are_not_lost() -> None:
    """Gradients below 6e-8, the smallest number of float16, while they pass the model."""
    _, measured = trained(step_of(goal(weight=1e-8)), ROWS[:1])
    _, expected = trained(step_of(goal(weight=1e-8), precision="fp32"), ROWS[:1])
    norm = expected[0]["grad_norm/student"]
    assert 0 < norm < 1e-7
    assert torch.allclose(measured[0]["grad_norm/student"], norm, rtol=5e-2)


def test_a_step_that_overflows_is_left_out_and_halves_the_scale() -> None:
    step = step_of(goal(weight=3.0))
    state = step.init()
    big = {"factor": torch.tensor(2.0**32), "finite_steps": torch.tensor(7, dtype=torch.int32)}
    state = state._replace(loss_scale=big)
    before = {n: p.clone() for n, p in state.trainable["student"].items()}
    statistics = {n: b.clone() for n, b in state.buffers["student"].items()}
    state, metrics = step(state, ROWS[0])
    assert not metrics["finite"] and float(state.skipped) == 1
    assert factor(state) == 2.0**31 and float(metrics["loss_scale"]) == 2.0**32
    assert all(torch.equal(before[n], p) for n, p in state.trainable["student"].items())
    assert all(torch.equal(statistics[n], b) for n, b in state.buffers["student"].items())
    while not metrics["finite"]:
        state, metrics = step(state, ROWS[0])
    assert factor(state) < 2.0**31 and state.loss_scale is not None
    assert int(state.loss_scale["finite_steps"]) == 1


def test_many_finite_steps_double_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "GROW_AFTER", 3)
    state, measured = trained(step_of(goal(weight=0.1)), ROWS[:7])
    assert [float(m["loss_scale"]) / 2.0**16 for m in measured] == [1, 1, 1, 2, 2, 2, 4]
    assert factor(state) == 2.0**18


def test_it_never_leaves_its_range() -> None:
    scale = {"factor": torch.tensor(loss_scale.LEAST), "finite_steps": torch.zeros(()).int()}
    assert loss_scale.next_scale(scale, torch.tensor(False))["factor"] == loss_scale.LEAST
    done = torch.tensor(loss_scale.GROW_AFTER, dtype=torch.int32)
    scale = {"factor": torch.tensor(loss_scale.MOST), "finite_steps": done}
    assert loss_scale.next_scale(scale, torch.tensor(True))["factor"] == loss_scale.MOST


def test_in_parts_and_with_combined_gradients() -> None:
    whole, _ = trained(step_of(), ROWS[:1])
    parts = step_of(goal(), accumulate=2)
    state, metrics = trained(parts, ROWS[:1])
    assert metrics[0]["finite"] and factor(state) == factor(whole)
    both = {"a": term(kl, student.logits, teacher.logits), "b": term(mse, student.logits, batch.y)}
    objective = fkd.Objective(both, **{n: m for n, m in goal().models.items()})
    rows = [{**row, "y": torch.zeros(6, 3)} for row in ROWS[:2]]
    combined = step_of(objective, combine=fkd.gradients.pcgrad())
    state, metrics = trained(combined, rows)
    assert metrics[-1]["finite"] and metrics[-1]["term_grad_norm/a"] < 100


def test_a_resumed_run_has_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "GROW_AFTER", 3)
    options: Any = {"steps": 8, "save_every": 1, "progress": False, "log_every": 1}
    step = step_of(goal(weight=0.1))
    whole = run(step, step.init(3), ROWS, checkpoint_dir=tmp_path / "a", **options)
    for event in fit(step, step.init(3), ROWS, checkpoint_dir=tmp_path / "b", **options):
        if event.kind == "save" and event.step == 5:
            break
    again = run(step, step.init(3), ROWS, checkpoint_dir=tmp_path / "b", **options)
    objective = goal()
    one, other = to_tree(objective, whole.state), to_tree(objective, again.state)
    assert factor(whole.state) == 2.0**18
    assert one["loss_scale"]["factor"] == other["loss_scale"]["factor"]
    assert one["loss_scale"]["finite_steps"] == other["loss_scale"]["finite_steps"]
    for name, p in one["trainable"]["student"].items():
        assert torch.equal(p, other["trainable"]["student"][name])


def test_it_is_logged(tmp_path: Path) -> None:
    step = step_of()
    events = list(fit(step, step.init(), ROWS, steps=2, log_every=1, progress=False))
    logged = [event.values for event in events if event.kind == "log"]
    assert [values["loss_scale"] for values in logged] == [2.0**16, 2.0**16]


def test_stages_and_sweeps_have_one() -> None:
    objective = goal()
    two = fkd.stages.stages(
        {n: fkd.stages.stage(step_of(objective), steps=1) for n in ("one", "two")}
    )
    state, _ = trained(two, ROWS[:3])
    assert state.loss_scale is not None and int(state.loss_scale["finite_steps"]) == 3
    sweep = fkd.sweeps.sweep(
        goal(),
        lambda p: torch.optim.AdamW(p, lr=1e-2),
        {"a": fkd.sweeps.member(), "b": fkd.sweeps.member()},
        compile=False,
        precision="fp16",
    )
    state, _ = trained(sweep, ROWS[:2])
    own = sweep.member(state, "a").loss_scale
    assert own is not None and int(own["finite_steps"]) == 2


@pytest.mark.plain
@pytest.mark.parametrize("precision", ["half", "float16", None, 16])
def test_another_word_is_refused(precision: Any) -> None:
    with pytest.raises(ValueError, match=r"precision is .*'fp16'"):
        step_of(precision=precision)
    state = step_of().init()
    with pytest.raises(ValueError, match=r"precision is .*'fp16'"):
        list(fkd.loops.score(goal(), state, ROWS, {"x": student.logits}, precision=precision or 0))


@pytest.mark.compile
def test_compiled() -> None:
    state, measured = trained(step_of(compile=True), ROWS[:3])
    eager, expected = trained(step_of(), ROWS[:3])
    assert factor(state) == factor(eager)
    for a, b in zip(measured, expected, strict=True):
        assert torch.allclose(a["loss/total"], b["loss/total"], rtol=2e-2)
