"""Two parameters of one name: an optimizer could not tell them apart."""

from __future__ import annotations

import torch
from torch import nn

from fkd import Objective, batch, module, term, trainable
from fkd.losses import mse


class Nested(nn.Module):
    """A parameter `b.weight`."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(x)


def objective(other: str) -> Objective:
    models = {"a": trainable(Nested()), other: trainable(nn.Linear(3, 3))}
    return Objective(term(mse, module("a")(batch.x), module(other)(batch.x)), **models)


def test_names_that_models_share_are_refused():
    (problem,) = objective("a.b").problems
    assert "'a' and 'a.b'" in problem and "a.b.weight" in problem and "Rename" in problem


def test_other_names_with_dots_are_not():
    assert not objective("a.c").problems and not objective("a.bb").problems
