"""A run of stages is the runs of its stages, one after the other."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import fkd
from fkd import batch, ref, student, teacher, term
from fkd.loops import restore, run, train_step
from fkd.losses import cross_entropy, kl, mse
from fkd.stages import stage, stages

from ..loops.training import Net, batches
from ..models import same_bits


def adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=0.01)


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)


def nets() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"student": Net(6), "teacher": Net(8), "project": nn.Linear(6, 8)}


def on_features(modules: dict[str, nn.Module]) -> fkd.Objective:
    """The head is not reached, the projection is trained along."""
    return fkd.Objective(
        {"hidden": term(mse, fkd.module("project")(student.hidden), teacher.hidden)},
        student=fkd.trainable(modules["student"], unused=["head"]),
        teacher=fkd.frozen(modules["teacher"]),
        project=fkd.trainable(modules["project"]),
    )


def on_logits(modules: dict[str, nn.Module]) -> fkd.Objective:
    return fkd.Objective(
        {
            "kd": term(kl, student.logits, teacher.logits,
                       weight=fkd.schedules.linear(1.0, 0.0, steps=4)),
            "labels": term(cross_entropy, student.logits, batch["y"]),
            "slow": term(mse, student.logits, ref("slow").logits),
        },
        student=fkd.trainable(modules["student"]),
        teacher=fkd.frozen(modules["teacher"]),
        slow=fkd.ema("student", decay=0.5),
    )  # fmt: skip


def both(compile: bool = False) -> Any:
    modules = nets()
    return stages(
        {
            "features": stage(train_step(on_features(modules), adamw, compile=compile), steps=3),
            "logits": stage(train_step(on_logits(modules), sgd, compile=compile, clip=1.0)),
        }
    )


def plain(seed: int) -> Any:
    """Without dropout, of which the second stage has another seed."""
    step = both()
    return step, step.init(seed=seed)


def test_stages_are_runs_in_a_row(monkeypatch):
    monkeypatch.setattr("torch.nn.Dropout.forward", lambda self, x: x)
    step, state = plain(3)
    data = batches(4) * 2
    for one in data[:7]:
        state, _ = step(state, one)
    modules = nets()
    first = train_step(on_features(modules), adamw, compile=False)
    own = first.init(seed=3)
    for one in data[:3]:
        own, _ = first(own, one)
    trained = copy.deepcopy(modules)
    tensors = {**own.trainable["student"], **own.frozen["student"], **own.buffers["student"]}
    with torch.no_grad():
        for n, p in (*trained["student"].named_parameters(), *trained["student"].named_buffers()):
            p.copy_(tensors[n])
    second = train_step(on_logits(trained), sgd, compile=False, clip=1.0)
    after = second.init(seed=3)
    for one in data[3:7]:
        after, _ = second(after, one)
    assert same_bits(state.trainable["student"], after.trainable["student"])
    assert same_bits(state.frozen["slow"], after.frozen["slow"])
    assert same_bits(state.trainable["project"], own.trainable["project"])
    assert state.step == 7 and step.stage_at(2) == "features" and step.stage_at(3) == "logits"


def ended(folder: Any, steps: int) -> Any:
    step = both()
    options = {"progress": False, "save_every": 1, "log_dir": folder / "log", "log_every": 1}
    dev = {"dev": batches(2), "best": "loss/logits/labels", "higher_is_better": False}
    return run(step, step.init(seed=1), batches(4), steps=steps, checkpoint_dir=folder,
               **options, **dev)  # fmt: skip


@pytest.mark.parametrize("cut", [2, 3, 5])
def test_a_run_of_stages_resumes_to_the_bit(tmp_path, cut):
    whole = ended(tmp_path / "whole", 7)
    ended(tmp_path / "parts", cut)
    parts = ended(tmp_path / "parts", 7)
    assert same_bits(whole.state._asdict(), parts.state._asdict())
    assert same_bits(restore(both(), tmp_path / "whole").trainable, whole.state.trainable)
    rows = fkd.loops.read_log(tmp_path / "whole" / "log" / "metrics.jsonl")
    rows = [row for row in rows if row["kind"] == "train"]
    assert "loss/features/hidden" in rows[0] and "loss/logits/kd" not in rows[0]
    assert "loss/logits/kd" in rows[-1] and "loss/features/hidden" not in rows[-1]
    assert rows[3]["weight/logits/kd"] == 1.0
    assert rows[0]["lr/0"] == 0.01 and rows[-1]["lr/0"] == 0.05


def test_another_stage_is_another_run(tmp_path):
    ended(tmp_path, 2)
    modules = nets()
    other = stages(
        {
            "features": stage(train_step(on_features(modules), sgd, compile=False), steps=3),
            "logits": stage(train_step(on_logits(modules), sgd, compile=False, clip=1.0)),
        }
    )
    with pytest.raises(fkd.loops.MismatchError, match="within"):
        restore(other, tmp_path)


@pytest.mark.compile
def test_stages_compile_as_their_steps_do():
    ended = []
    for compile in (False, True):
        step = both(compile)
        state = step.init(seed=0)
        for one in batches(3)[:2] * 3:
            state, _ = step(state, one)
        ended.append(state.trainable["student"])
        assert step.compilations == 2 * compile
    ended[0].pop("first.bias")  # before batch statistics: its gradient is rounding error alone
    for n in ended[0]:
        torch.testing.assert_close(ended[0][n], ended[1][n], rtol=1e-3, atol=1e-3)


def test_progressive_shrinking():
    """A smaller student begins as layers of the one before it, which becomes its teacher."""

    def deep(layers: int) -> nn.Sequential:
        return nn.Sequential(*(nn.Linear(5, 5) for _ in range(layers)))

    torch.manual_seed(0)
    modules = {"large": deep(4), "middle": deep(3), "small": deep(2)}

    def shrink(big: str, small: str) -> Any:
        models = {big: fkd.frozen(modules[big]), small: fkd.trainable(modules[small])}
        gap = term(mse, ref(small).logits, ref(big).logits)
        return train_step(fkd.Objective({"gap": gap}, **models), sgd, compile=False)

    def layers(big: str, small: str, chosen: list[int]) -> Any:
        def start(tensors: Any) -> Any:
            pairs = enumerate(chosen)
            return {small: {f"{i}.{kind}": tensors[big][f"{j}.{kind}"]
                            for i, j in pairs for kind in ("weight", "bias")}}  # fmt: skip

        return start

    step = stages(
        {
            "one": stage(shrink("large", "middle"), steps=2),
            "two": stage(
                shrink("middle", "small"), steps=2, start=layers("middle", "small", [0, 2])
            ),
        }
    )
    state = step.init()
    data = [{"input": torch.randn(4, 5)} for _ in range(3)]
    for one in data[:2]:
        state, _ = step(state, one)
    middle = {n: x.clone() for n, x in state.trainable["middle"].items()}
    before = state.trainable["small"]["1.weight"].clone()
    state, metrics = step(state, data[2])
    assert same_bits(middle, state.trainable["middle"])
    assert not torch.equal(before, state.trainable["small"]["1.weight"])
    moved = (state.trainable["small"]["1.weight"] - middle["2.weight"]).abs().max()
    assert float(moved) < 0.2 * float((before - middle["2.weight"]).abs().max())
    assert set(metrics) >= {"loss/one/gap", "loss/two/gap", "grad_norm/small"}


def test_mistakes_are_said():
    modules = nets()
    one = train_step(on_features(modules), adamw, compile=False)
    for wrong, message in (
        ({}, "there are none"),
        ({"a": stage(one), "b": stage(one)}, "stage 'a' has steps=None"),
        ({"a/b": stage(one)}, "without '/'"),
        ({"a": stage(one, steps=1), "b": stage(train_step(on_features(nets()), adamw,
                                                          compile=False))}, "another module"),
        ({"a": stage(one, steps=1), "b": stage(train_step(on_features(modules), adamw,
                                                          compile=False, precision="bf16"))},
         "precision"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            stages(wrong)
    bad = stages(
        {
            "a": stage(one, steps=1),
            "b": stage(one, start=lambda tensors: {"student": {"head.weight": torch.ones(2)}}),
        }
    )
    state, _ = bad(bad.init(), batches(1)[0])
    with pytest.raises(ValueError, match=r"start gives student\.head\.weight \(2,\)"):
        bad(state, batches(1)[0])
