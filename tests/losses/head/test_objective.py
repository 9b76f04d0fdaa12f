"""The head as a term of an objective: the same training as `kl` on the logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fkd
from fkd import batch, student, teacher, term
from fkd.losses import head, head_divergence


class LanguageModel(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, features)
        self.body = nn.Linear(features, features)
        self.lm_head = nn.Linear(features, 50, bias=False)

    def forward(self, input_ids):
        hidden = self.body(self.embed(input_ids)).tanh()
        return {"hidden": hidden, "logits": self.lm_head(hidden)}


def metrics(kd: fkd.Term, compile: Any) -> dict[str, torch.Tensor]:
    """After three steps on one batch."""
    torch.manual_seed(0)
    objective = fkd.Objective(
        {"kd": kd, "hidden": term(fkd.losses.mse, student.hidden, batch.target, weight=0.5)},
        student=fkd.trainable(LanguageModel(8)),
        teacher=fkd.frozen(LanguageModel(12)),
    )
    step = fkd.loops.train_step(objective, lambda p: torch.optim.SGD(p, lr=0.1), compile=compile)
    state, found = step.init(seed=0), {}
    data = {"input_ids": torch.randint(0, 50, (2, 6)), "target": torch.randn(2, 6, 8)}
    for _ in range(3):
        state, found = step(state, data)
    return {k: v for k, v in found.items() if k.startswith(("loss", "grad"))}


@pytest.mark.parametrize(
    "compile", [False, pytest.param({"backend": "aot_eager"}, marks=pytest.mark.compile)]
)
def test_trains_like_kl_on_the_logits(compile):
    options = {"temperature": lambda step: 2.0 + step, "weight": 0.7}
    heads = (student.hidden, student.param("lm_head.weight"),
             teacher.hidden, teacher.param("lm_head.weight"))  # fmt: skip
    by_head = term(
        head_divergence, *heads, divergence=head.kl(), strategy="chunked", chunk_size=5, **options
    )
    by_logits = term(fkd.losses.kl, student.logits, teacher.logits, **options)
    got, wanted = metrics(by_head, compile), metrics(by_logits, False)
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-6)
