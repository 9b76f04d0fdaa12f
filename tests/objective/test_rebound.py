"""A forward that was put onto an instance runs the copy, with the parameters that it is given."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import fkd
from fkd import student, teacher, term
from fkd._objective.models import skeleton
from fkd.losses import mse


def wrapped(module: nn.Module) -> nn.Module:
    """As libraries put it: a function that has closed over the module and its method."""
    original = module.forward

    def forward(*args: Any, scale: float = 2.0) -> Any:
        return scale * original(*args) + 0 * sum(p.sum() for p in module.parameters())

    module.forward = forward
    return module


def test_a_copy_runs_itself():
    net = nn.Sequential(nn.Linear(3, 3), wrapped(wrapped(nn.Linear(3, 2))))
    copied = skeleton(net, training=False)
    x = torch.randn(4, 3)
    assert torch.equal(copied(x), net(x))
    copied[1].weight = nn.Parameter(torch.zeros(2, 3))
    copied[1].bias = nn.Parameter(torch.ones(2))
    assert torch.equal(copied(x), torch.full((4, 2), 4.0))
    assert not torch.equal(net(x), copied(x))


def test_the_gradient_is_by_the_parameters_of_the_state():
    torch.manual_seed(0)
    small, large = wrapped(nn.Linear(3, 2)), nn.Linear(3, 2)
    objective = fkd.Objective(
        {"gap": term(mse, student.logits, teacher.logits)},
        student=fkd.trainable(small),
        teacher=fkd.frozen(large),
    )
    step = fkd.loops.train_step(
        objective, lambda params: torch.optim.SGD(params, lr=0.02), compile=False
    )
    state, losses, x = step.init(), [], torch.randn(16, 3)
    for _ in range(60):
        state, metrics = step(state, x)
        losses.append(float(metrics["loss/total"]))
    assert losses[-1] < 0.2 * losses[0]
