"""What a teacher says of the batches of `dev` is computed once in a run."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fkd
from fkd import batch, frozen, student, teacher, term, trainable
from fkd.loops import collect, evaluate, fit, score, train_step
from fkd.loops._evaluate.fixed import FixedValues
from fkd.losses import cross_entropy, kl, mse


class Counting(nn.Module):
    """A teacher that counts the rows that it is given in eval mode, by their number."""

    calls: dict[int, int] = {}  # noqa: RUF012  shared with the copies that are run

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        self.calls[len(x)] = self.calls.get(len(x), 0) + 1
        h = torch.tanh(self.body(x))
        return {"hidden": h, "logits": self.head(h)}


def objective():
    torch.manual_seed(0)
    return fkd.Objective(
        {
            "kd": term(kl, student.logits, teacher.logits, temperature=2.0),
            "hidden": term(mse, student.hidden, teacher.hidden),
            "labels": term(cross_entropy, student.logits, batch.y),
        },
        student=trainable(Counting()),
        teacher=frozen(Counting()),
    )


def batches(rows, count, seed):
    draw = torch.Generator().manual_seed(seed)
    return [
        {"x": torch.randn(rows, 4, generator=draw), "y": torch.arange(rows) % 3}
        for _ in range(count)
    ]


METRICS = {
    "sure": collect(lambda logits: float(torch.cat(logits).max()), teacher.logits),
    "near": fkd.metric(kl, student.logits, teacher.logits),
}


def evaluated(metrics, epochs=3):
    step = train_step(objective(), lambda p: torch.optim.SGD(p, lr=0.1), compile=False)
    state = step.init()
    states = []
    dev = batches(3, 2, seed=1)
    for event in fit(step, state, batches(4, 2, seed=0), dev=dev, metrics=metrics, epochs=epochs,
                     progress=False):  # fmt: skip
        if event.kind == "evaluate":
            fresh = evaluate(step.objective, event.state, dev, metrics=metrics)
            states.append((event.values, fresh))
    return states


def test_the_teacher_runs_once_on_each_batch_of_dev_and_the_values_are_the_same():
    Counting.calls.clear()
    for values, fresh in evaluated(METRICS):
        assert all(values[f"eval/{n}" if f"eval/{n}" in values else n] == v
                   for n, v in fresh.items())  # fmt: skip
    # student: 2 batches, 3 evaluations in the run and 3 fresh ones, and the dry run's; teacher: 2
    # batches once, the fresh ones, and the dry run's
    dry, student_runs, fresh_teacher, teacher_runs = 2, 2 * 3 * 2, 2 * 3, 2
    assert Counting.calls[3] <= dry + student_runs + fresh_teacher + teacher_runs


def test_a_function_of_the_context_reads_the_teacher_each_time():
    def sure(ctx):
        return ctx["teacher"]["logits"].max(-1).values

    for values, fresh in evaluated({"sure": sure}, epochs=2):
        name = "eval/sure" if "eval/sure" in values else "sure"
        assert values[name] == fresh["sure"]


def test_it_is_forgotten_with_the_teacher_and_kept_within_bounds():
    goal = objective()
    fixed = FixedValues(goal.program, [teacher.logits], compile=None, autocast=None)
    parts, [one, other] = goal.init(), batches(3, 2, seed=1)
    cpu = torch.device("cpu")
    Counting.calls.clear()
    a, b = fixed(parts, one, cpu), fixed(parts, {k: v.clone() for k, v in one.items()}, cpu)
    assert torch.equal(a[0], b[0]) and Counting.calls == {3: 1}
    b[0].zero_()  # what it gave is the caller's
    assert torch.equal(fixed(parts, one, cpu)[0], a[0])
    assert not torch.equal(fixed(parts, other, cpu)[0], a[0])
    with torch.no_grad():
        parts.frozen["teacher"]["head.bias"].add_(1)
    torch.testing.assert_close(fixed(parts, one, cpu)[0], a[0] + 1)
    none = FixedValues(goal.program, [teacher.logits], compile=None, autocast=None, most=10)
    Counting.calls.clear()
    for _ in range(2):
        none(parts, one, cpu)
    assert Counting.calls == {3: 2}


def test_score_of_an_objective_without_a_student():
    goal = objective()
    lone = fkd.Objective(dict(goal.terms), teacher=goal.models["teacher"])
    [one] = batches(3, 1, seed=1)
    [scored] = score(lone, None, [one], {"logits": teacher.logits})
    step = train_step(goal, lambda p: torch.optim.SGD(p, lr=0.1), compile=False)
    [same] = score(goal, step.init(), [one], {"logits": teacher.logits})
    assert torch.equal(scored["logits"], same["logits"])
    with pytest.raises(fkd.ObjectiveError, match="student"):
        score(lone, None, [one], {"kd": goal.terms["kd"]})


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # Inductor's own imports
def test_compiled_evaluation():
    goal = objective()
    step = train_step(goal, lambda p: torch.optim.SGD(p, lr=0.1), compile=False)
    from fkd.loops._evaluate.evaluate import Evaluator

    state, dev = step.init(), batches(3, 2, seed=1)
    again = Evaluator(goal, METRICS, compile={}, again=True)
    first, second = again(state, dev), again(state, dev)
    assert first == second
    assert first == pytest.approx(evaluate(goal, state, dev, metrics=METRICS), rel=1e-5)
