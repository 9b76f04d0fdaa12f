"""Results and states in a notebook."""

from __future__ import annotations

import torch

import fkd
from fkd import Objective, frozen, student, teacher, term, trainable
from fkd.losses import kl


def test_a_result_and_its_state_are_tables() -> None:
    step = _step()
    data = [torch.randn(2, 4) for _ in range(2)]
    result = fkd.loops.run(step, step.init(), data, epochs=2, dev=data)
    page = result._repr_html_()
    assert page.count("<tr>") == 1 + len(result.evaluations) and "loss/kd" in page
    state = result.state._repr_html_()
    for text in ("trainable", "student", "2 tensors of 15 numbers", "frozen", "teacher"):
        assert text in state
    assert len(page) + len(state) < 5000


def test_names_are_escaped() -> None:
    result = fkd.loops.Result(_step().init(), ({"<b>": 1.0},), None, None, "<script>")
    assert "<b>" not in result._repr_html_() and "<script>" not in result._repr_html_()


def _step() -> fkd.loops.TrainStep:
    objective = Objective(
        {"kd": term(kl, student.logits, teacher.logits)},
        student=trainable(torch.nn.Linear(4, 3)),
        teacher=frozen(torch.nn.Linear(4, 3)),
    )
    return fkd.loops.train_step(objective, lambda p: torch.optim.SGD(p, lr=0.1), compile=False)
