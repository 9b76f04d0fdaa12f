"""What cannot be compiled says so in words, and what can be has the numbers of eager torch."""

from __future__ import annotations

import logging
import random
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fkd import Objective, batch, student, term, trainable
from fkd.loops import CompileError, train_step
from fkd.losses import cross_entropy

AOT = {"backend": "aot_eager"}

pytestmark = [
    pytest.mark.compile,
    pytest.mark.filterwarnings("ignore:Dynamo does not know"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method`"),
]


class Net(nn.Module):
    """Two linear layers, with something in between."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.between, self.last = nn.Linear(8, 6), between, nn.Linear(6, 3)

    def forward(self, x):
        return self.last(self.between(self.first(x)))


class Tosses(nn.Module):
    """Draws with Python's generator."""

    def forward(self, x):
        return x * random.random()


class Looks(nn.Module):
    """Does something else where a value is large."""

    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


class Recomputes(nn.Module):
    """Checkpoints a part with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 6))

    def forward(self, x):
        return checkpoint(self.part, x, use_reentrant=False)


def losses(between: nn.Module, compile: Any, steps: int = 3) -> list[torch.Tensor]:
    objective = Objective(
        {"ce": term(cross_entropy, student.logits, batch.y)}, student=trainable(Net(between))
    )
    step = train_step(objective, lambda p: torch.optim.SGD(p, lr=0.5), compile=compile)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(16, 8, generator=generator)
    data = {"x": x, "y": torch.randint(3, (16,), generator=generator)}
    state, found = step.init(), []
    for _ in range(steps):
        state, metrics = step(state, data)
        found += [metrics["loss/total"], metrics["grad_norm/total"]]
    return found


@pytest.mark.parametrize(("between", "line"), [(Tosses, "random.random()"), (Looks, "x.sum() > 0")])
def test_an_error_names_the_module_and_the_way_out(between, line):
    with pytest.raises(CompileError) as error:
        losses(between(), AOT)
    text = str(error.value)
    assert f"It stopped in {between.__name__}, 'between' of model 'student'" in text
    assert line in text and "compile=False" in text and "\n" not in text
    assert len(losses(between(), False)) == 6


def test_dropout_draws_the_same_compiled():
    expected = losses(nn.Dropout(0.5), False)
    torch.testing.assert_close(losses(nn.Dropout(0.5), True), expected, rtol=1e-5, atol=1e-6)


def test_a_recomputation_that_torch_cannot_compile_is_left_out_and_said(caplog):
    torch.manual_seed(1)
    expected = losses(Recomputes(), False)
    torch.manual_seed(1)
    with caplog.at_level(logging.WARNING):
        found = losses(Recomputes(), AOT)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert "keeps its activations" in caplog.text


class Breaks(nn.Module):
    """What torch.compile runs in eager torch, between two graphs."""

    def forward(self, x):
        torch._dynamo.graph_break()
        return torch.tanh(x)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of torch, about its own look
def test_graph_breaks_are_allowed_where_they_are_asked_for():
    with pytest.raises(CompileError):
        losses(Breaks(), AOT)
    found = losses(Breaks(), AOT | {"fullgraph": False})
    torch.testing.assert_close(found, losses(nn.Tanh(), False), rtol=1e-5, atol=1e-6)


class Shuffles(nn.Module):
    """What torch's own pattern of a shuffle fails on."""

    def forward(self, x):
        return x + x[torch.randperm(len(x))]


@pytest.mark.compile
def test_a_shuffle_that_torch_cannot_compile_is_told_with_a_way_out():
    class Sorts(Shuffles):
        def forward(self, x):
            return x + x[torch.rand(len(x)).argsort()]

    with pytest.raises(CompileError, match=r"torch.rand\(n\).argsort\(\)"):
        losses(Shuffles(), True)
    assert len(losses(Sorts(), True)) == 6
