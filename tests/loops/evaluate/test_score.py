"""Scoring: the values of every example, and no more work than they need."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd

import fkd
from fkd import batch, student, teacher, term
from fkd._base.trees import map_tensors
from fkd.loops import evaluate, score
from fkd.losses import kl, mse
from tests.models import MLP, same_bits, tokens

from ..training import Net, batches, make

CPU = torch.device("cpu")


def logits(step: Any, name: str, x: Tensor) -> Tensor:
    with torch.no_grad():
        return step.objective.program.model(name).module.eval()(x)["logits"]


def test_values_are_what_a_hand_computes():
    step, state = make()
    goal = step.objective
    wanted = {
        "student": student.logits,
        "kl": fkd.call(kl, student.logits, teacher.logits),
        "kd": goal.terms["kd"],
        "first": lambda ctx: ctx["student"]["logits"][:, 0],
        "y": batch["y"],
    }
    found = list(score(goal, state, batches(), wanted))
    assert [len(f["kd"]) for f in found] == [5, 5, 5, 5, 4]
    for made, given in zip(found, batches(), strict=True):
        small, large = (logits(step, name, given["x"]) for name in ("student", "teacher"))
        torch.testing.assert_close(made["student"], small)
        torch.testing.assert_close(made["kl"], kl(small, large))
        torch.testing.assert_close(made["kd"], kl(small, large, temperature=2.0))
        assert torch.equal(made["first"], made["student"][:, 0])
        assert torch.equal(made["y"], given["y"])


def test_terms_have_the_knobs_of_the_step_and_the_state_of_the_run():
    step, state = make()
    for given in batches():
        state, _ = step(state, given)
    goal = step.objective
    moving = term(
        mse, student.logits, fkd.call(torch.zeros_like, teacher.logits), weight=lambda s: 100.0 + s
    )
    warm = term(kl, student.logits, teacher.logits, temperature=lambda s: 1.0 + s)
    wanted = {"centred": goal.terms["centred"], "mse": moving, "kl": warm, "h": student.hidden,
              "s": student.logits, "t": teacher.logits}  # fmt: skip
    made = next(score(goal, state, batches(), wanted))
    centre = state.loss_state["centred"]
    assert centre.abs().sum() > 0
    torch.testing.assert_close(made["centred"], (made["h"] - centre).square().mean(-1))
    torch.testing.assert_close(made["mse"], made["s"].square().mean(-1))
    torch.testing.assert_close(made["kl"], kl(made["s"], made["t"], temperature=6.0))


def test_the_means_of_scores_are_the_evaluation():
    step, state = make()
    goal = step.objective
    measured = evaluate(goal, state, batches())
    names = ["kd", "labels", "hidden", "slow"]
    found = list(score(goal, state, batches(), {n: goal.terms[n] for n in names}))
    for name in names:
        mean = torch.cat([f[name] for f in found]).mean().item()
        assert mean == pytest.approx(measured[f"loss/{name}"], rel=1e-5)


class Counted(Net):
    """Counts the forward passes of all its copies."""

    calls = 0

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        type(self).calls += 1
        return super().forward(x)


class CountedTeacher(Counted):
    calls = 0


def counted() -> fkd.Objective:
    Counted.calls = CountedTeacher.calls = 0
    return fkd.Objective(
        {"kd": term(kl, student.logits, teacher.logits)},
        student=fkd.trainable(Counted()),
        teacher=fkd.frozen(CountedTeacher()),
    )


def calls(wanted: dict[str, Any]) -> tuple[int, int]:
    goal = counted()
    state = fkd.loops.train_step(goal, torch.optim.SGD, compile=False).init()
    assert len(list(score(goal, state, batches(), wanted))) == 5
    return Counted.calls, CountedTeacher.calls


def test_only_the_models_that_are_read_run():
    assert calls({"x": student.logits, "y": batch["y"]}) == (5, 0)
    assert calls({"x": teacher.hidden}) == (0, 5)
    assert calls({"x": term(kl, student.logits, teacher.logits)}) == (5, 5)
    assert calls({"y": batch["y"]}) == (0, 0)


def test_a_batch_is_computed_when_it_is_asked_for_and_nothing_global_is_changed():
    goal = counted()
    state = fkd.loops.train_step(goal, torch.optim.SGD, compile=False).init()
    drawn: list[int] = []

    def loader(seed: int) -> Any:
        for i, given in enumerate(batches()):
            drawn.append(i)
            yield given

    before = map_tensors(torch.clone, state)
    generator = torch.get_rng_state()
    made = score(goal, state, loader, {"x": student.logits})
    assert drawn == []
    for i, one in enumerate(made):
        assert drawn == list(range(i + 1)) and Counted.calls == i + 1
        assert torch.is_grad_enabled() and not one["x"].requires_grad
        assert torch.equal(torch.get_rng_state(), generator)
    assert same_bits(before, state)


def test_no_values_and_wrong_names_are_said_before_anything_runs():
    step, state = make()
    with pytest.raises(ValueError, match="score: values is empty"):
        score(step.objective, state, batches(), {})
    with pytest.raises(fkd.ObjectiveError, match="techer"):
        score(step.objective, state, batches(), {"x": fkd.ref("techer").logits})


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5, 5, bias=False) for _ in range(6))

    def forward(self, x: Tensor) -> dict[str, Any]:
        hidden = [x]
        for layer in self.layers:
            hidden.append(layer(hidden[-1]).tanh())
        return {"hidden_states": tuple(hidden), "logits": hidden[-1]}


@pytest.mark.compile
def test_compiled_only_the_layers_that_are_read_run():
    sizes: list[int] = []

    def count(graph: Any, inputs: Any) -> Any:
        sizes.append(sum("mm" in str(n.target) for n in graph.graph.nodes))
        return graph

    goal = fkd.Objective(
        {"mse": term(mse, student.logits, teacher.logits)},
        student=fkd.trainable(Deep()),
        teacher=fkd.frozen(Deep()),
    )
    state = fkd.loops.train_step(goal, torch.optim.SGD, compile=False).init()
    wanted = {"two": teacher.hidden_states[2]}
    options = {"backend": aot_autograd(fw_compiler=count)}
    found = list(score(goal, state, batches(), wanted, compile=options))
    assert sizes == [2, 2]  # two layers, of the two shapes of batch
    eager = score(goal, state, batches(), wanted)
    for one, other in zip(found, eager, strict=True):
        torch.testing.assert_close(one["two"], other["two"])


def test_bf16_runs_the_models_in_half_precision():
    step, state = make()
    made = next(score(step.objective, state, batches(), {"x": student.logits}, precision="bf16"))
    assert made["x"].dtype is torch.bfloat16


def test_the_state_of_a_bf16_run_is_evaluated_as_it_was_trained():
    objective = fkd.Objective(
        {"kd": fkd.term(kl, fkd.student.logits, fkd.teacher.logits)},
        student=fkd.trainable(MLP()),
        teacher=fkd.frozen(MLP(12, 3)),
    )
    step = fkd.loops.train_step(
        objective, lambda p: torch.optim.SGD(p, lr=0.1), compile=False, precision="bf16"
    )
    state, data = step.init(), [tokens()]
    values = fkd.loops.evaluate(objective, state, data)
    wide = fkd.loops.train_step(objective, torch.optim.SGD, compile=False).init()
    expected = fkd.loops.evaluate(objective, wide, data)
    assert values["loss/kd"] == pytest.approx(expected["loss/kd"], rel=0.05)
    (scores,) = fkd.loops.score(objective, state, data, {"teacher": fkd.teacher.logits})
    (exact,) = fkd.loops.score(objective, wide, data, {"teacher": fkd.teacher.logits})
    assert scores["teacher"].dtype is torch.bfloat16 and exact["teacher"].dtype is torch.float32
    torch.testing.assert_close(scores["teacher"].float(), exact["teacher"], rtol=0.05, atol=0.05)
