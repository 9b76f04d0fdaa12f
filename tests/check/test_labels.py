"""Labels that are no class: of heads, and of metrics that no term of the objective has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fkd
from fkd import batch, check, frozen, metric, student, teacher, term, trainable
from fkd.loops import fit, train_step
from fkd.losses import head, head_divergence, kl
from fkd.metrics import accuracy, perplexity

IDS = torch.arange(10).reshape(2, 5)


class Speaker(nn.Module):
    """A language model of eleven tokens, without its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 4)
        self.head = nn.Linear(4, 11, bias=False)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        return {"hidden": self.words(ids)}


def of_heads(divergence: Any = None, **options: Any) -> fkd.Objective:
    said = term(
        head_divergence,
        *(student.hidden, student.param("head.weight")),
        *(teacher.hidden, teacher.param("head.weight")),
        labels=batch.labels,
        divergence=divergence or head.kl() + head.cross_entropy(),
        **options,
    )
    return fkd.Objective({"kd": said}, student=trainable(Speaker()), teacher=frozen(Speaker()))


def with_label(label: int, place: tuple[int, int]) -> dict[str, Tensor]:
    labels, mask = IDS.clone(), torch.ones(2, 5, dtype=torch.bool)
    labels[place], mask[place] = label, False
    return {"ids": IDS, "labels": labels, "mask": mask}


@pytest.mark.parametrize("label", [11, 400, -1])
def test_a_head_has_so_many_classes(label: int):
    said = rf"'kd': batch.labels has the label {label}; 0 to 10 are .*param\('head.weight'\) has 11"
    with pytest.raises(fkd.ObjectiveError, match=said):
        check(of_heads(), with_label(label, (0, 2)))


def test_labels_that_do_not_count_may_be_anything():
    masked, ignored = with_label(11, (0, 2)), with_label(-100, (0, 2))
    assert check(of_heads(where=batch.mask), masked).rows[0].positions == "9 of 10"
    assert check(of_heads(), ignored).rows[0].positions == "9 of 10"
    assert check(of_heads(head.kl()), masked).rows[0].positions == "10 of 10"  # reads no label
    # Position t predicts the label of t + 1: the first label is none.
    check(of_heads(shift=True), with_label(11, (0, 0)))
    with pytest.raises(fkd.ObjectiveError, match="the label 11"):
        check(of_heads(shift=True, where=batch.mask), with_label(11, (0, 2)))
    check(of_heads(shift=True, where=batch.mask[:, [1, 2, 3, 4, 0]]), with_label(11, (0, 2)))


def classifier() -> fkd.Objective:
    models = {name: kind(nn.Linear(4, 3), inputs=lambda one: {"input": one["x"]})
              for name, kind in (("student", trainable), ("teacher", frozen))}  # fmt: skip
    return fkd.Objective({"kd": term(kl, student.logits, teacher.logits)}, **models)


def run(metrics: dict[str, Any], labels: list[int], objective: fkd.Objective) -> list[Any]:
    step = train_step(objective, lambda p: torch.optim.SGD(p, lr=0.1), compile=False)
    data = [{"x": torch.randn(4, 4), "y": torch.tensor(labels)}]
    return list(fit(step, step.init(), data, epochs=1, dev=data, metrics=metrics, progress=False))


@pytest.mark.parametrize("function", [accuracy, perplexity])
@pytest.mark.parametrize("wrong", [3, 100])
def test_a_metric_of_a_run_says_which_label(function: Any, wrong: int):
    measured = {"score": metric(function, student.logits, batch.y)}
    said = f"first batch of dev, metric 'score': batch.y has the label {wrong}; 0 to 2 are expected"
    with pytest.raises(ValueError, match=said):
        run(measured, [0, 1, wrong, 2], classifier())
    events = run(measured, [0, 1, -100, 2], classifier())  # where there is none, as ever
    assert any(event.kind == "evaluate" for event in events)


def test_a_metric_with_a_mask_and_metrics_of_other_kinds_run():
    measured = {
        "masked": metric(accuracy, student.logits, batch.y, where=batch.y < 3),
        "own": metric(lambda x, y: x[:, 0] * y, student.logits, batch.y),
        "whole": fkd.loops.collect(lambda *columns: len(columns), student.logits, batch.y),
        "context": lambda ctx: student.logits(ctx)[:, 0],
    }
    assert run(measured, [0, 1, 7, 2], classifier())
