"""A teacher on a stream of its own: the values of the teacher in the step, none read early."""

from __future__ import annotations

import pytest
import torch

import fkd
from fkd.sources import ahead, bind
from tests.sources.test_bind import data, mlps

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("compile", [False, {"mode": "reduce-overhead"}])
def test_ahead_on_a_device_is_the_teacher_in_the_step(compile):
    objective, made = mlps(), [data() for _ in range(6)]
    losses = []
    with ahead(objective, device="cuda", batches=3, compile=compile) as source:
        for goal, train in ((objective, made), (bind(objective, source), source.attach(made))):
            step = fkd.loops.train_step(
                goal, lambda params: torch.optim.SGD(params, lr=0.1), compile=False
            )
            state, seen = step.init(device="cuda"), []
            for one in train:
                torch.cuda._sleep(int(1e7))  # the step is late, and the teacher ahead of it
                state, metrics = step(state, one)
                seen.append(float(metrics["loss/total"]))
            losses.append(seen)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
