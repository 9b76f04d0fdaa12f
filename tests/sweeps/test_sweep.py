"""A sweep has the numbers of single runs, and runs its teacher once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fkd
from fkd import batch, call, ref, student, teacher, term
from fkd.loops import evaluate, export, fit, restore, run, train_step
from fkd.losses import cross_entropy, kl, mse, taid, taid_init
from fkd.sweeps import member, sweep

from ..loops.training import Net, batches
from ..models import leaves, same_bits


class Counting(Net):
    """A teacher that counts its forward passes."""

    calls = 0

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        Counting.calls += 1
        return super().forward(x)


def objective(temperature: Any = 2.0, weight: Any = 0.5, net: Any = None) -> fkd.Objective:
    torch.manual_seed(0)
    models: dict[str, Any] = {"student": Net(6), "teacher": Counting(8)}
    models["student"] = models["student"] if net is None else net
    return fkd.Objective(
        {
            "kd": term(kl, student.logits, teacher.logits, temperature=temperature, weight=weight),
            "labels": term(cross_entropy, student.logits, batch["y"]),
            "hidden": term(
                mse, fkd.module("project")(student.tap("first")), teacher.hidden, to=("student",
                                                                                     "project")
            ),
            "slow": term(mse, student.logits, ref("slow").logits),
        },
        student=fkd.trainable(models["student"]),
        teacher=fkd.frozen(models["teacher"]),
        project=fkd.trainable(torch.nn.Linear(6, 8)),
        slow=fkd.ema("student", decay=0.9),
    )  # fmt: skip


def adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=0.01)


def another(seed: int) -> Net:
    torch.manual_seed(seed)
    return Net(6)


MEMBERS = {
    "base": member(),
    "hot": member({"kd/temperature": 8.0, "kd/weight": 1.0}),
    "fast": member(lr=3.0, seed=7),
    "other": member({"kd/weight": fkd.schedules.linear(1.0, 0.0, steps=5)}, modules={
        "student": another(5)}),
}  # fmt: skip
SINGLE: dict[str, dict[str, Any]] = {
    "base": {},
    "hot": {"temperature": 8.0, "weight": 1.0},
    "fast": {},
    "other": {"weight": fkd.schedules.linear(1.0, 0.0, steps=5)},
}


def sched(factor: float):
    decay = fkd.schedules.linear(1.0, 0.1, steps=10)
    return lambda step: decay(step) * factor


def options(compile: bool = False) -> dict[str, Any]:
    return {"compile": compile, "clip": 1.0, "lr": fkd.schedules.linear(1.0, 0.1, steps=10)}


def test_every_member_is_a_single_run_to_the_bit():
    step = sweep(objective(), adamw, MEMBERS, **options())
    state = step.init(seed=3)
    data = batches(5, bad=2)
    for one in data:
        state, metrics = step(state, one)
    for name, own in SINGLE.items():
        single = objective(**own, net=another(5) if name == "other" else None)
        chosen = {**options(), "lr": sched(3.0)} if name == "fast" else options()
        alone = train_step(single, adamw, **chosen)
        expected = alone.init(seed=7 if name == "fast" else 3)
        for one in data:
            expected, numbers = alone(expected, one)
        got = step.member(state, name)
        assert same_bits(got.trainable, expected.trainable), name
        assert same_bits(got.optimizer, expected.optimizer)
        assert same_bits(got.frozen["slow"], expected.frozen["slow"])
        assert same_bits(got.buffers["student"], expected.buffers["student"])
        assert torch.equal(metrics[f"loss/{name}/total"], numbers["loss/total"])
        assert float(got.skipped) == float(expected.skipped) == 1
        assert (got.seed, got.step) == (expected.seed, expected.step)
    assert float(state.skipped) == len(MEMBERS)


@pytest.mark.compile
def test_a_compiled_sweep_compiles_once_and_is_the_eager_one():
    ended = []
    few = {name: MEMBERS[name] for name in ("base", "hot")}
    for compile in (False, True):
        step = sweep(objective(), adamw, few, **options(compile))
        state = step.init(seed=3)
        for one in batches(3)[:2] * 2:
            state, _ = step(state, one)
        ended.append(leaves(state.trainable))
        assert step.compilations == int(compile)
    for x, y in zip(*ended, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


def test_the_teacher_runs_once_for_a_batch():
    step = sweep(objective(), adamw, MEMBERS, **options())
    state = step.init()
    state, _ = step(state, batches()[0])  # which checks the objective, too
    before = Counting.calls
    step(state, batches()[1])
    assert Counting.calls == before + 1


def test_a_sweep_runs_resumes_evaluates_and_exports(tmp_path):
    def begin() -> Any:
        return sweep(objective(), adamw, MEMBERS, **options())

    def ended(folder: Any, steps: int) -> Any:
        step = begin()
        more = {"progress": False, "save_every": 2, "log_dir": folder / "log", "log_every": 1}
        dev = {"dev": batches(2), "best": "loss/base/labels", "higher_is_better": False}
        arguments = {"steps": steps, "checkpoint_dir": folder, **more, **dev}
        return run(step, step.init(seed=1), batches(4), **arguments)

    whole = ended(tmp_path / "whole", 5)
    ended(tmp_path / "parts", 3)
    parts = ended(tmp_path / "parts", 5)
    assert same_bits(whole.state._asdict(), parts.state._asdict())
    step = begin()
    again = restore(step, tmp_path / "whole")
    for name in MEMBERS:
        assert same_bits(
            step.member(again, name).trainable, step.member(whole.state, name).trainable
        )
    rows = [
        row
        for row in fkd.loops.read_log(tmp_path / "whole" / "log" / "metrics.jsonl")
        if row["kind"] == "train"
    ]
    assert {"loss/hot/kd", "grad_norm/fast/student", "lr/fast/0", "skipped/base"} <= set(rows[-1])
    values = evaluate(step.objective, again, batches(2))
    assert {"loss/base/kd", "loss/hot/labels"} <= set(values)
    assert {n for n in values if n.startswith("agreement")} == {
        f"agreement/{name}/student" for name in MEMBERS
    }
    assert isinstance(export(step.objective, again, "hot/student"), Net)


def test_a_member_that_diverges_does_not_end_the_others():
    def risky(student_x: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
        return (student_x * scale).square().mean(-1)

    torch.manual_seed(0)
    plain = fkd.Objective(
        {"risk": term(risky, student.logits)}, student=fkd.trainable(torch.nn.Linear(5, 3))
    )
    members = {"good": member(), "bad": member({"risk/scale": float("inf")})}
    step = sweep(plain, adamw, members, compile=False)
    data = [{"input": torch.randn(4, 5)} for _ in range(3)]
    for event in fit(step, step.init(), data, epochs=2, max_nonfinite=2, log_every=1,
                     progress=False):  # fmt: skip
        last = event
    assert float(step.member(last.state, "bad").skipped) == 6
    assert float(step.member(last.state, "good").skipped) == 0


def test_mistakes_are_said():
    for members, message in (
        ({}, "members is empty"),
        ({"a/b": member()}, "without '/'"),
        ({"a": member({"kt/weight": 1.0})}, "Did you mean 'kd'"),
        ({"a": member({"kd/temprature": 1.0})}, "Did you mean 'temperature'"),
        ({"a": member({"labels/ignore_index": 1.0, "hidden/where": 2.0})}, "where"),
    ):
        with pytest.raises(ValueError, match=message):
            sweep(objective(), adamw, members, compile=False)
    step = sweep(objective(), adamw, MEMBERS, compile=False)
    with pytest.raises(ValueError, match="no member 'cold'"):
        step.member(step.init(), "cold")
    reads = fkd.Objective(
        {"a": term(lambda x: x.square().mean(-1), lambda ctx: ctx["student"]["logits"])},
        student=fkd.trainable(Net()),
    )
    with pytest.raises(ValueError, match="plain function of the context"):
        sweep(reads, adamw, {"a": member()}, compile=False)


def mixed(x: torch.Tensor) -> torch.Tensor:
    share = torch.rand(len(x), 1, device=x.device)
    return share * x + (1 - share) * x.flip(0)


def together(temperature: float = 2.0, inputs: Any = batch.x) -> fkd.Objective:
    """Two students that teach each other, one of them at every second step, and a loss with a
    state; the student with dropout and batch normalisation."""
    torch.manual_seed(0)
    body = [torch.nn.Linear(5, 6), torch.nn.BatchNorm1d(6), torch.nn.Dropout(0.3)]
    net = torch.nn.Sequential(*body, torch.nn.Linear(6, 3))
    peer = torch.nn.Linear(5, 3)
    logits = student.on(inputs).logits
    return fkd.Objective(
        {
            "kd": term(kl, logits, teacher.on(inputs).logits, temperature=temperature),
            "taid": term(taid, logits, teacher.on(inputs).logits, state=taid_init(0.2)),
            "peer": term(kl, ref("peer").logits, fkd.stop_gradient(student.logits), to="peer"),
        },
        student=fkd.trainable(net, inputs=lambda b: b["x"]),
        peer=fkd.trainable(peer, inputs=lambda b: b["x"]),
        teacher=fkd.frozen(torch.nn.Linear(5, 3), inputs=lambda b: b["x"]),
    )


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


@pytest.mark.parametrize("more", [{}, {"accumulate": 2}, {"combine": fkd.gradients.pcgrad()}])
def test_members_with_several_optimizers_turns_and_states_are_single_runs(tmp_path, more):
    halved = fkd.schedules.constant(0.5)
    chosen = {
        **more, "compile": False, "clip": {"student": 0.5},
        "lr": {"student": halved, "peer": halved}, "when": {"peer": lambda step: step % 2 == 0},
    }  # fmt: skip
    makers = {"student": adamw, "peer": sgd}
    g = torch.Generator().manual_seed(1)
    data = [{"x": torch.randn(8, 5, generator=g)} for _ in range(4)]
    members = {"a": member(), "b": member({"kd/temperature": 5.0}, seed=4)}
    for steps in (2, None):  # killed, and resumed
        step = sweep(together(), makers, members, **chosen)
        ended = run(step, step.init(seed=3), data, epochs=1, steps=steps, progress=False,
                    checkpoint_dir=tmp_path)  # fmt: skip
    for name, temperature, seed in (("a", 2.0, 3), ("b", 5.0, 4)):
        alone = train_step(together(temperature), makers, **chosen)
        expected = alone.init(seed=seed)
        for one in data:
            expected, _ = alone(expected, one)
        got = step.member(ended.state, name)
        for part in ("trainable", "optimizer", "loss_state", "combine_state"):
            assert same_bits(getattr(got, part), getattr(expected, part)), (name, part)
        assert same_bits(got.buffers["student"], expected.buffers["student"])


def test_inputs_that_are_drawn_inside_the_objective_are_refused():
    """The teacher runs once, beside the members: each would draw its own mixture."""
    few = {"a": member(), "b": member({"kd/temperature": 5.0})}
    one = {"x": torch.randn(8, 5)}
    step = sweep(together(inputs=call(mixed, batch.x)), adamw, few, compile=False)
    with pytest.raises(ValueError, match=r"call\(mixed, batch.x\) is read by the student as well"):
        step(step.init(), one)
    only = fkd.Objective(
        {"kd": term(kl, student.logits, teacher.on(call(mixed, batch.x)).logits, temperature=2.0)},
        student=fkd.trainable(torch.nn.Linear(5, 3)), teacher=fkd.frozen(torch.nn.Linear(5, 3)),
    )  # fmt: skip
    step = sweep(only, adamw, few, compile=False)
    with pytest.raises(ValueError, match="would not have the numbers of single runs"):
        step(step.init(), one)
    step = sweep(together(inputs=batch.x * 2), adamw, few, compile=False)
    step(step.init(), one)  # nothing is drawn
