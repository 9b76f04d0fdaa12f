"""What is said of models that were given something else than they take."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fkd
from fkd import Objective, frozen, student, teacher, term, trainable
from fkd.losses import kl


def objective(small: Any, large: Any) -> Objective:
    return Objective(term(kl, student.logits, teacher.logits), student=small, teacher=large)


@pytest.mark.plain
def test_inputs_and_outputs_are_functions():
    names: Any = ["x"]
    name: Any = "logits"
    cases = {
        "'student': inputs=['x'] is a list": (trainable(nn.Linear(2, 2), inputs=names), None),
        "'teacher': outputs='logits' is a str": (None, frozen(nn.Linear(2, 2), outputs=name)),
        "'teacher': inputs=['x'] is a list": (None, fkd.ema("student", inputs=names)),
    }
    for words, (small, large) in cases.items():
        models = small or trainable(nn.Linear(2, 2)), large or frozen(nn.Linear(2, 2))
        (problem,) = objective(*models).problems
        assert words in problem and "a function is expected" in problem


@pytest.mark.plain
def test_an_average_follows_a_name():
    with pytest.raises(ValueError, match=r"ema: of is a Linear; the name .* fkd.ema\('student'\)"):
        fkd.ema(nn.Linear(2, 2))  # type: ignore[arg-type]


def test_one_prefix_is_not_its_letters():
    one = objective(trainable(nn.Linear(2, 2), unused="bias"), frozen(nn.Linear(2, 2)))
    assert set(one.init().trainable["student"]) == {"weight"}
    fkd.check(one, {"input": torch.randn(3, 2)})
