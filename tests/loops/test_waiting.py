"""What is compiled says so, whoever calls it: there is no silent minute."""

from __future__ import annotations

import io
import itertools
import sys
import time

import pytest
import torch
from torch import nn

import fkd
from fkd import batch, frozen, student, teacher, term, trainable
from fkd.loops import evaluate, score, train_step
from fkd.loops._base import waiting
from fkd.loops._base.waiting import Compiling, on_standard_error
from fkd.losses import cross_entropy, kl

EAGER = {"backend": "aot_eager"}  # compiled as far as anyone who waits can tell


def goal():
    torch.manual_seed(0)
    return fkd.Objective(
        {
            "kd": term(kl, student.logits, teacher.logits),
            "labels": term(cross_entropy, student.logits, batch.y),
        },
        student=trainable(nn.Linear(4, 3), inputs=lambda b: b["x"]),
        teacher=frozen(nn.Linear(4, 3), inputs=lambda b: b["x"]),
    )


def batches(*sizes):
    return [{"x": torch.randn(n, 4), "y": torch.zeros(n, dtype=torch.long)} for n in sizes]


def test_lines_become_fewer_and_never_leave_a_minute_without_one():
    assert list(itertools.islice(waiting._pauses(2.0), 7)) == [2, 4, 8, 16, 30, 30, 30]


def test_each_shape_is_said_once(monkeypatch):
    monkeypatch.setattr(waiting, "PATIENCE", 0.01)
    lines: list[str] = []
    compiling = Compiling("the step")
    for shape in (1, 1, 2):
        with compiling(lambda shape=shape: shape, lines.append):
            time.sleep(0.03)
    assert sum(line.startswith("compiled the step in 0.0") for line in lines) == 2
    assert lines[0].startswith("compiling the step, 0.0 s so far")
    asked: list[int] = []
    with compiling(lambda: asked.append(1), None):
        pass
    assert not asked


def test_without_a_standard_error_nothing_is_said(monkeypatch):
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed):
        monkeypatch.setattr(sys, "stderr", stream)
        on_standard_error("lost")


@pytest.mark.compile
def test_what_is_called_alone_says_that_it_compiles(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(waiting, "PATIENCE", 0.001)
    objective, data = goal(), batches(4, 4, 2)

    def told():
        out, err = capsys.readouterr()
        assert not out
        return [line for line in err.splitlines() if "compil" in line]

    def ends(lines, what):
        return sum(line.startswith(f"compiled {what} in") for line in lines)

    step = train_step(objective, lambda p: torch.optim.SGD(p, lr=0.1), compile=EAGER)
    state = step.init()
    for one in data:
        state, _ = step(state, one)
    lines = told()
    assert lines[0].startswith("compiling the step, 0.0 s so far") and ends(lines, "the step") == 2
    evaluate(objective, state, data, compile=EAGER)
    assert ends(told(), "the forward pass") == 2  # one for each shape
    list(score(objective, state, data, {"z": student.logits}, compile=EAGER))
    assert ends(told(), "the forward pass") == 2
    fkd.sources.cache(objective, data, tmp_path / "a", compile=EAGER)
    assert ends(told(), "the teacher") == 2
    bound = fkd.interop.modules.bind(objective, compile=EAGER)
    bound(data[0])
    assert ends(told(), "the step") == 1
    list(fkd.loops.fit(step, state, data, epochs=1, progress=False))
    fkd.sources.cache(objective, data, tmp_path / "b", compile=EAGER, progress=False)
    evaluate(objective, state, data)
    assert not told()
