"""Evaluation: the whole set, however it is cut into batches; no gradients; eval mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fkd
from fkd import batch, student, teacher
from fkd._base.trees import map_tensors
from fkd.loops import collect, evaluate
from fkd.losses import kl
from fkd.metrics import accuracy
from tests.models import same_bits
from tests.trees import tree_leaves

from ..training import batches, make, objective


def whole(data: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: torch.cat([b[k] for b in data]) for k in data[0]}]


def correct(ctx: Any) -> Any:
    return ctx["student"]["logits"].argmax(-1) == ctx["batch"]["y"]


METRICS = {
    "accuracy": fkd.metric(accuracy, student.logits, batch["y"]),
    "kl": fkd.metric(kl, student.logits, teacher.logits),
    "function": correct,
    "counts": collect(
        lambda logits, y: {"n": sum(map(len, y)), "sum": float(torch.cat(logits).sum())},
        student.logits,
        batch["y"],
    ),
}


def test_a_ragged_last_batch_weighs_what_it_should():
    """The set in unequal batches, and in one: the same values, to rounding in float32."""
    data = batches()
    made, state = objective(), make()[1]
    one = evaluate(made, state, whole(data), metrics=METRICS)
    cut = evaluate(made, state, data, metrics=METRICS)
    assert list(one) == list(cut)
    naive = [evaluate(made, state, [b], metrics=METRICS) for b in data]
    for name in one:
        assert cut[name] == pytest.approx(one[name], rel=2e-6, abs=1e-7), name
    assert sum(v["kl"] for v in naive) / 5 != pytest.approx(one["kl"], rel=1e-5)


def test_it_is_what_a_hand_computes():
    data, (step, state) = batches(), make()
    found = evaluate(step.objective, state, data, metrics=METRICS)
    net = step.objective.program.model("student").module.eval()
    other = step.objective.program.model("teacher").module.eval()
    everything = whole(data)[0]
    with torch.no_grad():
        logits, aim = net(everything["x"])["logits"], other(everything["x"])["logits"]
    right = (logits.argmax(-1) == everything["y"]).float().mean().item()
    assert found["accuracy"] == pytest.approx(right) == found["function"]
    assert found["agreement"] == pytest.approx(
        (logits.argmax(-1) == aim.argmax(-1)).float().mean().item()
    )
    assert found["counts/n"] == 24
    assert found["counts/sum"] == pytest.approx(logits.sum().item(), rel=1e-5)
    weights = {"kd": 1.0, "labels": 1.0, "hidden": 1.0, "slow": 1.0, "centred": 0.1}
    total = sum(w * found[f"loss/{n}"] for n, w in weights.items())
    assert found["loss/total"] == pytest.approx(total, rel=1e-6)


def test_nothing_is_changed_and_chance_plays_no_part():
    step, state = make()
    before = map_tensors(torch.clone, state)
    first = evaluate(step.objective, state, batches())
    torch.manual_seed(99)
    assert evaluate(step.objective, state, batches()) == first
    assert same_bits(before, state)
    held = tree_leaves(state)
    assert not any(x.requires_grad for x in held if isinstance(x, torch.Tensor))


def test_a_loader_may_be_a_function_of_a_seed():
    step, state = make()
    direct = evaluate(step.objective, state, batches())
    assert evaluate(step.objective, state, lambda seed: iter(batches())) == direct


def test_many_positions_are_counted_exactly():
    """float32 cannot count beyond 2 ** 24."""
    big = fkd.Mean(torch.tensor(3e7), torch.tensor(1.5e7))
    one = fkd.Mean(torch.tensor(1.0), torch.tensor(1.0))
    made, state = objective(), make()[1]
    means = iter([big, big, one, one, one])
    found = evaluate(made, state, batches(), metrics={"m": lambda ctx: next(means)})
    assert found["m"] == (6e7 + 3) / (3e7 + 3)


def test_an_empty_loader_is_said_so():
    step, state = make()
    with pytest.raises(ValueError, match="the loader gave no batch"):
        evaluate(step.objective, state, [])


@pytest.mark.plain
def test_something_that_is_no_metric_is_said_so():
    step, state = make()
    with pytest.raises(TypeError, match="a metric is a int"):
        evaluate(step.objective, state, batches(), metrics={"wrong": 3})  # type: ignore[dict-item]


@pytest.mark.compile
def test_compiled_is_eager():
    step, state = make()
    data = batches()
    eager = evaluate(step.objective, state, data, metrics={"accuracy": METRICS["accuracy"]})
    compiled = evaluate(
        step.objective,
        state,
        data,
        metrics={"accuracy": METRICS["accuracy"]},
        compile={"backend": "aot_eager"},
    )
    for name, value in eager.items():
        assert compiled[name] == pytest.approx(value, rel=1e-5), name


class Counts:
    """A metric with a state, as those of torchmetrics: how often each class is the first choice."""

    def __init__(self) -> None:
        self.n = torch.full((3,), 100.0)  # what was there before must not count

    def reset(self) -> None:
        self.n = torch.zeros(3)

    def update(self, logits: torch.Tensor, y: torch.Tensor) -> None:
        assert len(logits) == len(y)
        self.n += torch.bincount(logits.argmax(-1), minlength=3)

    def compute(self) -> dict[str, torch.Tensor]:
        return {"all": self.n.sum(), "each": self.n}


def test_a_metric_with_a_state_sees_every_batch_once():
    data, (step, state) = batches(), make()
    metrics = {"first": collect(Counts(), student.logits, batch["y"])}
    for _ in range(2):
        found = evaluate(step.objective, state, data, metrics=metrics)
        assert found["first/all"] == sum(len(b["y"]) for b in data)
        assert sum(found[f"first/each/{i}"] for i in range(3)) == found["first/all"]


def test_torchmetrics():
    classification = pytest.importorskip("torchmetrics.classification")
    data, (step, state) = batches(), make()
    f1 = classification.MulticlassF1Score(num_classes=3, average="micro")
    metrics = {
        "f1": collect(f1, student.logits, batch["y"]),
        "accuracy": fkd.metric(accuracy, student.logits, batch["y"]),
    }
    found = evaluate(step.objective, state, data, metrics=metrics)
    assert found["f1"] == pytest.approx(found["accuracy"])  # micro F1 is accuracy


def test_a_metric_with_a_state_is_collected_and_not_averaged():
    data, (step, state) = batches(), make()

    class Called(Counts):
        def __call__(self, *values: torch.Tensor) -> torch.Tensor:
            raise AssertionError(values)

    for wrong in (Called(), fkd.metric(Called(), student.logits, batch["y"])):
        with pytest.raises(
            TypeError, match=r"'first': Called gathers.*fkd.loops.collect\(Called\(\.\.\.\), s"
        ):
            evaluate(step.objective, state, data, metrics={"first": wrong})


@pytest.mark.plain
def test_a_metric_that_reads_nothing_is_refused():
    with pytest.raises(ValueError, match="collect: no refs"):
        collect(Counts())
