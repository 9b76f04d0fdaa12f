"""Which parameters `check` says to mark as unused: those that are, and no others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fkd
from fkd import Objective, batch, student, term, trainable
from fkd._check.unreached import largest_prefixes
from fkd.losses import mse


class Masked(nn.Module):
    """As models of vision and speech: a token that is only used in pretraining."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Module()
        self.embeddings.mask_token = nn.Parameter(torch.zeros(4))
        self.embeddings.project = nn.Linear(4, 4)
        self.pooler = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.pool = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(self.embeddings.project(x)))


def problem(net: nn.Module, **options: object) -> str:
    objective = Objective(term(mse, student.logits, batch.y), student=trainable(net, **options))
    try:
        fkd.check(objective, {"x": torch.ones(3, 4), "y": torch.ones(3, 2)})
    except fkd.ObjectiveError as error:
        (one,) = error.problems
        return one
    return ""


def test_only_what_is_unreached_is_named():
    said = problem(Masked())
    assert "unused=['embeddings.mask_token', 'pooler'])" in said
    assert "no term reaches 5 of its 11 trainable parameters" in said


def test_and_following_it_trains_the_rest():
    net = Masked()
    unused = ["embeddings.mask_token", "pooler"]
    assert problem(net, unused=unused) == ""
    objective = Objective(term(mse, student.logits, batch.y), student=trainable(net, unused=unused))
    moving = set(objective.init().trainable["student"])
    assert moving == {
        f"{m}.{p}" for m in ("embeddings.project", "pool", "head") for p in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("lost", "names", "expected"),
    [
        (["a.x"], ["a.x", "a.y"], ["a.x"]),
        (["a.b.x", "a.b.y", "a.c"], ["a.b.x", "a.b.y", "a.c", "b"], ["a"]),
        (["a.b.x", "a.b.y"], ["a.b.x", "a.b.y", "a.c", "ab.x"], ["a.b"]),
        (["ab.x"], ["a.x", "ab.x"], ["ab"]),
        (["a.1.w"], ["a.1.w", "a.10.w"], ["a.1"]),
    ],
)
def test_the_largest_prefixes(lost, names, expected):
    assert largest_prefixes(lost, names) == expected
