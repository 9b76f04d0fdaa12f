"""Loggers get the values of a run, whoever they are."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import fkd
from fkd import batch, student, teacher, term
from fkd.interop import loggers
from fkd.losses import kl


def train(*given: Any, **options: Any) -> None:
    torch.manual_seed(0)
    objective = fkd.Objective(
        {"kd": term(kl, student.logits, teacher.logits)},
        student=fkd.trainable(torch.nn.Linear(4, 3)),
        teacher=fkd.frozen(torch.nn.Linear(4, 3)),
    )
    step = fkd.loops.train_step(objective, lambda p: torch.optim.SGD(p, lr=0.1), compile=False)
    data = [torch.randn(2, 4) for _ in range(4)]
    options = {"steps": 4, "log_every": 2, "progress": False, "dev": data, **options}
    fkd.loops.run(step, step.init(), data, loggers=given, **options)


def test_a_function_is_a_logger():
    seen: list[tuple[int, Mapping[str, float]]] = []
    train(lambda step, values: seen.append((step, values)))
    assert [step for step, _ in seen] == [2, 4, 4]
    assert {"loss/kd", "loss/total"} <= seen[0][1].keys()
    assert {"eval/loss/total", "eval/agreement"} <= seen[2][1].keys()


def test_json_lines(tmp_path: Path):
    path = tmp_path / "folder" / "values.jsonl"
    train(loggers.json_lines(path))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 4]
    loggers.json_lines(path)(5, {"grad_norm": math.nan, "x": math.inf})
    assert json.loads(path.read_text().splitlines()[-1]) == {
        "step": 5, "grad_norm": "nan", "x": "inf",
    }  # fmt: skip


class Service:
    """Has the interfaces of wandb, of mlflow and of TensorBoard."""

    def __init__(self) -> None:
        self.calls: list[tuple[int | None, dict[str, float]]] = []

    def log(self, data: dict[str, Any], *, step: int | None = None) -> None:
        self.calls.append((step, data))

    def log_metrics(self, metrics: dict[str, float], *, step: int | None = None) -> None:
        self.calls.append((step, metrics))

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.calls.append((global_step, {tag: scalar_value}))


@pytest.mark.parametrize("make", [loggers.wandb, loggers.trackio, loggers.mlflow])
def test_services(make: Any):
    service = Service()
    train(make(service))
    assert [step for step, _ in service.calls] == [2, 4, 4]
    assert all(isinstance(v, float | int) for _, values in service.calls for v in values.values())


def test_mlflow_gets_finite_values_only():
    service = Service()
    loggers.mlflow(service)(1, {"a": 1.0, "b": math.nan})
    assert service.calls == [(1, {"a": 1.0})]


def test_tensorboard_gets_one_scalar_a_value():
    service = Service()
    loggers.tensorboard(service)(3, {"a": 1.0, "b": 2.0})
    assert service.calls == [(3, {"a": 1.0}), (3, {"b": 2.0})]


def test_a_real_summary_writer(tmp_path: Path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    writer = tensorboard.SummaryWriter(str(tmp_path))
    train(loggers.tensorboard(writer))
    writer.close()
    assert any(path.stat().st_size > 100 for path in tmp_path.iterdir())


def test_one_that_fails_is_said_once_and_the_run_goes_on(caplog: pytest.LogCaptureFixture):
    seen: list[int] = []

    def broken(step: int, values: Mapping[str, float]) -> None:
        raise ConnectionError("no answer")

    with caplog.at_level(logging.WARNING, "fkd"):
        train(broken, lambda step, values: seen.append(step))
    assert seen == [2, 4, 4]
    assert caplog.text.count("no answer") == 1 and "loggers[0]" in caplog.text


@pytest.mark.plain
def test_what_is_no_list_of_functions_is_refused():
    for given, message in ((print, "loggers is one function"), ([1], r"loggers\[0\] is 1")):
        with pytest.raises(ValueError, match=message):
            _fit_with(given)


def _fit_with(given: Any) -> None:
    step = fkd.loops.train_step(
        fkd.Objective(
            {"kd": term(kl, student.logits, batch.target)},
            student=fkd.trainable(torch.nn.Linear(4, 3)),
        ),
        torch.optim.AdamW,
        compile=False,
    )
    fkd.loops.run(step, step.init(), [], steps=1, loggers=given)
