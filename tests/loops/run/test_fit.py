"""The loop: how long it runs, over what, what it measures, logs, keeps and tells."""

from __future__ import annotations

import json
import math
from collections import UserDict, namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import fkd
from fkd import batch, student, teacher, term
from fkd.loops import LoopError, fit, report, run, train_step
from fkd.loops._checkpoint.checkpoint import load
from fkd.loops._log.lines import read_log
from fkd.losses import kl, mse

from ..training import CLASSES, FEATURES, batches, make, newest, train


def kinds(events: list[Any], *wanted: str) -> list[tuple[str, int]]:
    return [(e.kind, e.step) for e in events if e.kind in wanted]


# -- how long -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "steps", "message"),
    [
        ({"epochs": 2}, 10, "2 epochs are done"),
        ({"epochs": None, "steps": 7}, 7, "7 steps are done"),
        ({"epochs": 1, "steps": 7}, 5, "1 epoch is done"),
        ({"epochs": 9, "steps": 7}, 7, "7 steps are done"),
    ],
)
def test_it_ends_after_the_epochs_or_the_steps(limits, steps, message):
    last = train(None, **limits)[-1]
    assert (last.kind, last.step, last.message) == ("end", steps, message)


def test_events_come_in_order(tmp_path):
    events = train(tmp_path, epochs=1, dev=batches(), save_every=None, evaluate_every=2)
    assert [(e.kind, e.step) for e in events if e.kind != "save"] == [
        *[("start", 0), ("evaluate", 2), ("log", 4), ("evaluate", 4)],
        *[("epoch", 5), ("log", 5), ("evaluate", 5), ("end", 5)],
    ]
    assert [e.step for e in events if e.kind == "save"] == [2, 4, 5, 5]  # again, as evaluated
    assert all(e.path.parent == tmp_path for e in events if e.kind == "save")


def test_without_folders_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(None, epochs=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"epochs": None}, "neither epochs nor steps"),
        ({"log_every": 0}, "log_every is 0"),
    ],
)
def test_options_out_of_range_are_refused_at_once(bad, message):
    with pytest.raises(ValueError, match=message):
        train(None, **bad)


def test_a_best_that_is_not_measured_is_refused_before_the_first_step():
    with pytest.raises(ValueError, match=r"best='acuracy'.*Did you mean 'accuracy'"):
        metrics = {"accuracy": fkd.metric(kl, student.logits, teacher.logits)}
        train(None, dev=batches(), best="acuracy", metrics=metrics)


# -- over what ------------------------------------------------------------------------------


class Endless:
    """An iterable without a length."""

    def __iter__(self) -> Any:
        yield from batches()


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from batches()


def test_any_iterable_gives_the_same_run():
    loaders = [
        batches(),
        tuple(batches()),
        Endless(),
        DataLoader(Stream(), batch_size=None),
        lambda seed: iter(batches()),
    ]
    ends = [train(None, loader)[-1].state.trainable["student"]["head.bias"] for loader in loaders]
    assert all(torch.equal(end, ends[0]) for end in ends)


def test_a_stream_without_a_length_can_be_logged(tmp_path):
    """`len` of a DataLoader over it raises."""
    assert train(None, DataLoader(Stream(), batch_size=None), log_dir=tmp_path)[-1].step == 10


class Once:
    """An iterator of a class of one's own, of which it is not known that it cannot begin again."""

    def __init__(self) -> None:
        self.batches = iter(batches())

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.batches)


def test_an_iterator_that_is_used_up_is_said_so(tmp_path):
    with pytest.raises(ValueError, match=r"list_iterator, .* used only once, and there are 2 epo"):
        train(tmp_path, iter(batches()))
    with pytest.raises(LoopError, match=r"no batch in epoch 1.*used only once"):
        train(tmp_path, Once())
    assert newest(tmp_path).name == "step-00000005"


@pytest.mark.parametrize("empty", [[], iter([]), lambda seed: []])
def test_an_empty_loader_is_said_so(empty):
    with pytest.raises(LoopError, match="no batch in epoch 0"):
        train(None, empty, epochs=1)


def test_an_empty_dev_set_is_said_so():
    with pytest.raises(ValueError, match="evaluate: the loader gave no batch"):
        train(None, dev=[], epochs=1)


Pair = namedtuple("Pair", "x y")


def _examples() -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(4, 3, generator=g), torch.randn(4, 2, generator=g)) for _ in range(3)]


FORMS: dict[str, tuple[Any, Any, Any]] = {
    "tuple": (lambda x, y: (x, y), batch[1], None),
    "list": (lambda x, y: [x, y], batch[1], None),
    "named tuple": (Pair, batch.y, lambda b: b.x),
    "dict": (lambda x, y: {"input": x, "y": y}, batch["y"], None),
    "mapping": (lambda x, y: UserDict({"input": x, "y": y}), batch["y"], None),
    "nested": (
        lambda x, y: {"inputs": [{"deep": (x,)}], "y": {"t": y}},
        batch["y"]["t"],
        lambda b: b["inputs"][0]["deep"][0],
    ),
    "numpy": (lambda x, y: {"input": x.numpy(), "y": y.numpy()}, batch["y"], None),
    "with text": (lambda x, y: {"input": x, "y": y, "id": ["a"] * 4, "n": 3}, batch["y"], None),
}


@pytest.mark.parametrize("form", FORMS)
def test_batches_of_any_form(form, tmp_path):
    pack, target, inputs = FORMS[form]
    torch.manual_seed(0)
    model = fkd.trainable(nn.Linear(3, 2), inputs=inputs)
    step = train_step(
        fkd.Objective({"mse": term(mse, student.output, target)}, student=model),
        lambda params: torch.optim.SGD(params, lr=0.1),
        compile=False,
    )
    loader = [pack(x, y) for x, y in _examples()]
    folder = tmp_path
    values = [
        e.values
        for e in fit(step, step.init(), loader, epochs=1, log_every=1, log_dir=folder, dev=loader,
                     progress=False, tensorboard=False)
        if e.kind == "log"
    ]  # fmt: skip
    torch.manual_seed(0)
    plain = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for (x, y), found in zip(_examples(), values, strict=True):
        loss = (plain(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert found["loss/mse"] == pytest.approx(loss.item(), rel=1e-5)
        assert found["examples_per_s"] > 0


@pytest.mark.compile
def test_the_seconds_of_compiling_are_logged_and_not_counted_in_the_throughput():
    step, state = make(compile={"backend": "eager"})
    logged = [
        e.values for e in fit(step, state, batches(), epochs=2, log_every=1) if e.kind == "log"
    ]
    seconds = [found["compile_s"] for found in logged]
    # Batches are ragged: two shapes, in the first epoch.
    assert 0 < seconds[0] == seconds[3] < seconds[4] == seconds[-1] == step.compile_seconds
    assert step.compilations == 2
    # A shape that a graph with dynamic sizes covers is not compiled for.
    dynamic, state = make(compile={"backend": "eager", "dynamic": True})
    ends = [e for e in fit(dynamic, state, batches(), epochs=1, log_every=1) if e.kind == "log"]
    assert dynamic.compilations == 1 and ends[0].values["compile_s"] == dynamic.compile_seconds
    assert [i for i, e in enumerate(ends) if "examples_per_s" not in e.values] == [0]
    # A window in which every step compiled has no throughput; the others have that of a step.
    assert [i for i, found in enumerate(logged) if "examples_per_s" not in found] == [0, 4]
    assert logged[1]["examples_per_s"] > 2 * len(batches()[0]["x"]) / seconds[0]
    plain, begun = make()
    ends = [e for e in fit(plain, begun, batches(), epochs=1, log_every=1) if e.kind == "log"]
    assert all("examples_per_s" in e.values for e in ends)
    assert all("compile_s" not in e.values for e in ends)


# -- evaluation -----------------------------------------------------------------------------


def test_evaluation_every_n_steps_or_at_the_ends_of_epochs():
    assert kinds(train(None, dev=batches()), "evaluate") == [("evaluate", 5), ("evaluate", 10)]
    every = kinds(train(None, dev=batches(), evaluate_every=4), "evaluate")
    assert every == [("evaluate", 4), ("evaluate", 8), ("evaluate", 10)]


def _scores(*values: float) -> Any:
    """A metric that has one value after another."""
    left = list(values)
    return {"score": fkd.loops.collect(lambda y: left.pop(0), batch["y"])}


def test_it_stops_early_and_keeps_the_best(tmp_path):
    options = {"dev": batches(), "metrics": _scores(0.1, 0.9, 0.5, 0.4, 0.3), "best": "score"}
    options |= {"evaluate_every": 1, "patience": 2, "keep_last": 1}
    events = train(tmp_path, **options)
    assert events[-1].step == 4 and events[-1].values == {"best": 0.9, "best_step": 2}
    assert "has not improved in 2 evaluations; best 0.9 at step 2" in events[-1].message
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000002", "step-00000004"]
    assert load(tmp_path / "step-00000002").metric == 0.9
    again = train(tmp_path, **options)  # and it stays stopped
    assert [e.kind for e in again] == ["start", "end"] and again[-1].step == 4


def test_lower_is_better_for_losses_and_nan_is_never_best(tmp_path):
    options = {"dev": batches(), "evaluate_every": 1, "steps": 4, "best": "score"}
    higher = train(None, metrics=_scores(0.5, math.nan, 0.7, 0.6), **options)
    assert higher[-1].values == {"best": 0.7, "best_step": 3}
    lower = train(None, metrics=_scores(0.5, math.nan, 0.2, 0.6), higher_is_better=False, **options)
    assert lower[-1].values == {"best": 0.2, "best_step": 3}
    first = train(None, metrics=_scores(math.nan, 0.1, 0.0, 0.0), **options)
    assert first[-1].values == {"best": 0.1, "best_step": 2}


def test_run_gives_the_result():
    step, state = make()
    result = run(step, state, batches(), epochs=2, dev=batches())
    assert [e["step"] for e in result.evaluations] == [5.0, 10.0]
    assert result.best == min(e["loss/total"] for e in result.evaluations)
    assert result.state.step == 10 and result.message == "2 epochs are done"


def test_callbacks_see_every_event_first():
    seen: list[tuple[str, int]] = []
    events = train(None, epochs=1, callbacks=[lambda e: seen.append((e.kind, e.step))])
    assert seen == [(e.kind, e.step) for e in events]


def test_an_error_of_a_callback_is_raised_as_it_is_and_the_state_saved(tmp_path):
    def callback(event: Any) -> None:
        if event.kind == "log":
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        train(tmp_path, save_every=100, callbacks=[callback])
    assert newest(tmp_path).name == "step-00000004"


# -- the log --------------------------------------------------------------------------------


def _scalars(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def _x(made: Any) -> Tensor:
    return made["x"]


def test_what_is_logged_is_what_a_hand_computes(tmp_path):
    """An objective of one linear layer, its gradient and AdamW's absence done by hand."""
    torch.manual_seed(0)
    net, other = nn.Linear(FEATURES, CLASSES), nn.Linear(FEATURES, CLASSES)
    moving = fkd.schedules.linear(1.0, 0.0, steps=10)
    warm = fkd.schedules.linear(1.0, 4.0, steps=6)
    terms = {
        "mse": term(mse, student.logits, teacher.logits, weight=moving),
        "kd": term(kl, student.logits, teacher.logits, temperature=warm),
    }
    models = {"student": fkd.trainable(net, inputs=_x), "teacher": fkd.frozen(other, inputs=_x)}
    objective = fkd.Objective(terms, **models)
    rate = fkd.schedules.linear(1.0, 0.5, steps=10)
    step = train_step(objective, lambda p: torch.optim.SGD(p, lr=0.2), compile=False, lr=rate)
    loader = batches()
    list(
        fit(step, step.init(), loader, epochs=2, log_every=3, log_dir=tmp_path, progress=False,
            tensorboard=True, dev=loader, metrics={"half": lambda ctx: ctx["student"][:, 0] * 0.5},
            config={"idea": "a hand"})
    )  # fmt: skip
    hand = nn.Linear(FEATURES, CLASSES)
    hand.load_state_dict(net.state_dict())
    rows: list[dict[str, float]] = []
    for index in range(10):
        x = loader[index % 5]["x"]
        t, weight = 1.0 + 3.0 * min(index / 6, 1.0), 1 - index / 10
        a, b = hand(x), other(x).detach()
        squared = (a - b).square().mean()
        p, q = (b / t).softmax(-1), (a / t).softmax(-1)
        divergence = (p * (p.log() - q.log())).sum(-1).mean() * t**2
        total = weight * squared + divergence
        grads = torch.autograd.grad(total, list(hand.parameters()))
        norm = sum(g.square().sum() for g in grads).sqrt().item()
        rows.append(
            {
                "loss/mse": squared.item(), "loss/kd": divergence.item(),
                "loss/total": total.item(), "grad_norm/student": norm, "grad_norm/total": norm,
                "weight/mse": weight, "knob/kd/temperature": t, "lr/0": 0.2 * (1 - 0.05 * index),
                "skipped": 0.0,
            }
        )  # fmt: skip
        with torch.no_grad():
            for p, g in zip(hand.parameters(), grads, strict=True):
                p -= 0.2 * (1 - 0.05 * index) * g
    lines = [r for r in read_log(tmp_path / "metrics.jsonl") if r["kind"] == "train"]
    assert [r["step"] for r in lines] == [3, 6, 9, 10]
    board = _scalars(tmp_path)
    for name in rows[0]:
        events = board.Scalars(name)
        assert [e.step for e in events] == [3, 6, 9, 10]
        for line, event, window in zip(
            lines, events, ([0, 3], [3, 6], [6, 9], [9, 10]), strict=True
        ):
            values = [row[name] for row in rows[slice(*window)]]
            averaged = name.startswith(("loss", "grad_norm"))
            expected = sum(values) / len(values) if averaged else values[-1]
            assert line[name] == pytest.approx(expected, rel=1e-4, abs=1e-7), name
            assert event.value == pytest.approx(line[name], rel=1e-6), name
    with torch.no_grad():
        everything = torch.cat([b["x"] for b in loader])
        logits, aim = hand(everything), other(everything)
    last = [r for r in read_log(tmp_path / "metrics.jsonl") if r["kind"] == "eval"][-1]
    agree = (logits.argmax(-1) == aim.argmax(-1)).float().mean().item()
    assert last["eval/agreement"] == pytest.approx(agree)
    assert last["eval/half"] == pytest.approx(logits[:, 0].mean().item() / 2, rel=1e-4)
    assert board.Scalars("eval/agreement")[-1].value == pytest.approx(agree)
    texts = set(board.Tags()["tensors"])
    assert {"check/text_summary", "graph/text_summary", "hyperparameters/text_summary"} <= texts
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["idea"] == "a hand" and config["optimizer"] == "SGD" and config["seed"] == 0
    assert "mse" in (tmp_path / "check.txt").read_text()
    assert (tmp_path / "graph.svg").read_text().startswith("<svg")
    page = report(tmp_path).read_text()
    assert "loss/mse" in page and "eval/agreement" in page and "<svg" in page


def test_left_out_updates_are_counted_and_leave_the_means_alone():
    events = train(None, batches(bad=2), log_every=5, epochs=1)
    values = next(e.values for e in events if e.kind == "log")
    assert values["skipped"] == 1 and math.isfinite(values["loss/total"])


def test_a_pipe_gets_lines(tmp_path, capsys):
    train(None, log_dir=tmp_path, progress=True, log_every=2, dev=batches())
    shown = capsys.readouterr().err
    assert "\r" not in shown and "step 2/10 (20 %)" in shown
    assert shown.count("agreement") == 2 and shown.splitlines()[-1].startswith("step 10/10")


@pytest.mark.plain  # the type checker itself draws from `random`
def test_the_users_generators_are_as_they_were():
    import random

    step, state = make()
    states = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
    list(fit(step, state, batches(), epochs=1))
    now = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
    assert states == now
