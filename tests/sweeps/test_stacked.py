"""Stacked members have the numbers of members in turn; what vmap cannot run is refused in words."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fkd
from examples.recipes._small import bert
from fkd import batch, student, teacher, term
from fkd.losses import cross_entropy, kl
from fkd.sweeps import member, sweep

from ..loops.training import Net, batches
from ..models import leaves
from .test_sweep import another, objective, options


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)


MEMBERS = {
    "base": member(),
    "hot": member({"kd/temperature": 8.0, "kd/weight": 1.0}),
    "fast": member(lr=3.0),
    "other": member({"kd/weight": fkd.schedules.linear(1.0, 0.0, steps=5)}, modules={
        "student": another(5)}),
}  # fmt: skip


def ended(members: Any, *, stacked: bool, net: Any = None, compile: bool = False) -> Any:
    step = sweep(objective(net=net), sgd, members, stacked=stacked, **options(compile))
    state = step.init(seed=3)
    for one in batches(5, bad=2):
        state, metrics = step(state, one)
    return step, state, metrics


def close(one: Any, other: Any) -> None:
    for x, y in zip(leaves(one), leaves(other), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=2e-6)


def test_stacked_members_are_the_members_in_turn():
    # Dropout, batch statistics, an average, terms for some models, clipping, schedules, and a
    # batch that is not finite.
    (_, one, numbers), (step, two, measured) = (
        ended(MEMBERS, stacked=stacked) for stacked in (False, True)
    )
    for field in ("trainable", "buffers", "frozen", "optimizer"):
        close(getattr(one, field), getattr(two, field))
    assert numbers.keys() == measured.keys()
    for name, value in numbers.items():
        torch.testing.assert_close(measured[name], value, rtol=1e-5, atol=1e-6, check_dtype=False)
    assert float(step.member(two, "hot").skipped) == 1


def test_members_with_seeds_of_their_own_are_stacked_where_nothing_is_drawn():
    seeds = {"a": member(seed=1), "b": member(seed=2, lr=2.0)}
    nets = [Net(6, 0.0) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    one, two = (ended(seeds, stacked=s, net=n)[1] for s, n in zip((False, True), nets, strict=True))
    close(one.trainable, two.trainable)
    assert [one.step, one.seed] == [two.step, two.seed]


def test_a_stacked_sweep_resumes_exactly(tmp_path):
    def go(folder: Any, steps: int) -> Any:
        step = sweep(objective(), sgd, MEMBERS, stacked=True, **options())
        return fkd.loops.run(
            step, step.init(seed=1), batches(4), steps=steps, checkpoint_dir=folder, progress=False
        )

    whole = go(tmp_path / "whole", 6)
    go(tmp_path / "parts", 3)
    parts = go(tmp_path / "parts", 6)
    for x, y in zip(leaves(whole.state.trainable), leaves(parts.state.trainable), strict=True):
        assert torch.equal(x, y)


def test_transformers_and_a_frozen_body_are_stacked():
    def made() -> fkd.Objective:
        torch.manual_seed(0)
        net = bert(8, 2)
        net.bert.embeddings.requires_grad_(requires_grad=False)
        counts = batch.labels != -100
        return fkd.Objective(
            {
                "kd": term(kl, student.logits, teacher.logits, temperature=2.0, where=counts),
                "labels": term(cross_entropy, student.logits, batch.labels),
            },
            student=fkd.trainable(net),
            teacher=fkd.frozen(bert(16, 2)),
        )

    ids = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 3, 0, 0]])
    data = {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": ids - 100 * (ids == 0)}
    members = {"a": member(), "b": member({"kd/temperature": 4.0})}
    states = []
    for stacked in (False, True):
        step = sweep(made(), sgd, members, stacked=stacked, compile=False)
        state = step.init(seed=0)
        for _ in range(2):
            state, _ = step(state, data)
        states.append(state.trainable)
    close(*states)


def decides(student_x: torch.Tensor) -> torch.Tensor:
    return student_x.square().mean(-1) if bool(student_x.sum() > 0) else student_x.abs().mean(-1)


class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # pyright: ignore
        return grad * 2


def with_backward(student_x: torch.Tensor) -> torch.Tensor:
    return Own.apply(student_x).square().mean(-1)  # pyright: ignore


@pytest.mark.parametrize(
    ("loss", "message"), [(decides, "values of a tensor"), (with_backward, "backward pass of its")]
)
def test_what_vmap_cannot_run_is_said(loss, message):
    made = fkd.Objective(
        {"a": term(loss, student.logits)}, student=fkd.trainable(torch.nn.Linear(5, 3))
    )
    step = sweep(made, sgd, {"a": member(), "b": member()}, stacked=True, compile=False)
    with pytest.raises(ValueError, match=f"{message}.*run in turn"):
        step(step.init(), {"input": torch.randn(4, 5)})


def test_members_that_would_draw_apart_are_refused():
    seeds = {"a": member(seed=1), "b": member(seed=2)}
    with pytest.raises(ValueError, match=r"seeds of their own.*Give the members no seed"):
        ended(seeds, stacked=True)


def test_options_that_stacked_members_cannot_have_are_refused():
    for more, message in (
        ({"accumulate": 2}, "accumulate"),
        ({"combine": fkd.gradients.pcgrad()}, "combine"),
        ({"precision": "fp16"}, "fp16"),
    ):
        with pytest.raises(ValueError, match=f"{message}.*run in turn"):
            sweep(objective(), sgd, MEMBERS, stacked=True, compile=False, **more)
    blocks = fkd.Objective(
        {"a": term(cross_entropy, student.logits, batch.y)},
        student=fkd.trainable(torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(5, 3))),
                              checkpoint_blocks=["0"]),
    )  # fmt: skip
    with pytest.raises(ValueError, match="activation checkpointing"):
        sweep(blocks, sgd, MEMBERS, stacked=True, compile=False)


@pytest.mark.compile
def test_compiled_stacked_members_are_the_eager_ones():
    few = {name: MEMBERS[name] for name in ("base", "hot")}
    states = []
    for compile in (False, True):
        step = sweep(objective(), sgd, few, stacked=True, **options(compile))
        state = step.init(seed=3)
        for one in batches(3)[:2] * 2:
            state, _ = step(state, one)
        assert step.compilations == int(compile)
        states.append(state.trainable)
    close(*states)
