"""What a person sees who types a name: a few words, never the tensors."""

from __future__ import annotations

import torch
from torch import nn

import fkd
from fkd.losses import dino, dino_init


def test_values_with_many_tensors_print_their_sizes() -> None:
    body = nn.Sequential(*(nn.Linear(30, 30) for _ in range(50)), nn.BatchNorm1d(30))
    objective = fkd.Objective(
        fkd.term(dino, fkd.student.logits, fkd.teacher.logits, state=dino_init(30)),
        student=fkd.trainable(body),
        teacher=fkd.ema("student"),
    )
    step = fkd.loops.train_step(objective, lambda p: torch.optim.Adam(p), compile=False)
    state, _ = step(step.init(), torch.randn(4, 30))
    _, aux = objective(objective.init(), torch.randn(4, 30))
    shown = [repr(x) for x in (state, state.parts, aux, objective.program, objective, step)]
    assert max(map(len, shown)) < 600
    assert not [text for text in shown if "0x" in text or "...," in text]
    assert shown[0].startswith("State(step=1, seed=0, trainable={student: 102 tensors of 46,560 ")
    assert "buffers={student: 3 tensors of 61 numbers" in shown[1]
