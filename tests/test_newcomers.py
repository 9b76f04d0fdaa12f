"""What one writes who comes from a plain loop, a Trainer, another library: said, or right."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import logging
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fkd
from fkd import batch, student, teacher, term
from fkd.loops import LoopError, export, fit, run, train_step
from fkd.losses import cross_entropy, kl
from fkd.schedules import linear, warmup

from .models import same_bits

ROW = {"x": torch.randn(6, 4), "y": torch.tensor([0, 1, 2, 0, 1, 2])}


class Net(nn.Module):
    """A linear classifier."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.linear = nn.Linear(4, classes)

    def forward(self, x):
        return self.linear(x)


class Tokenizer:
    """As far as it is told from a model."""

    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]:
        return [len(token) for token in tokens]


class Pair(Net):
    """The same, with its inputs."""

    def forward(self, x):
        return super().forward(x), x


@dataclasses.dataclass
class Row:
    """A batch of a collate function."""

    x: torch.Tensor
    y: torch.Tensor


def goal(*, terms: Any = None, **models: Any) -> fkd.Objective:
    both = {
        "kd": term(kl, student.logits, teacher.logits),
        "ce": term(cross_entropy, student.logits, batch.y),
    }
    pair = {"student": fkd.trainable(Net()), "teacher": fkd.frozen(Net())}
    return fkd.Objective(terms or both, **{**pair, **models})


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


def stepped(objective: fkd.Objective | None = None, row: Any = ROW, **options: Any) -> Any:
    maker = options.pop("optimizer", sgd)
    step = train_step(objective or goal(), maker, **{"compile": False, **options})
    return step(step.init(), row)


def fitted(loader: Any = None, **options: Any) -> Any:
    step = train_step(goal(), sgd, compile=False)
    options = {"epochs": 1, "progress": False, **options}
    loader = [ROW] if loader is None else loader
    return list(fit(step, step.init(), loader, **options))


def swept(**options: Any) -> Any:
    members = {
        n: fkd.sweeps.member({"kd/temperature": t}) for n, t in {"cold": 1.0, "hot": 4.0}.items()
    }
    step = fkd.sweeps.sweep(goal(), sgd, members, compile=False)
    return list(fit(step, step.init(), [ROW], epochs=1, progress=False, dev=[ROW], **options))


def of_labels(labels: Any) -> Any:
    return stepped(row={"x": ROW["x"], "y": labels})


def lossy(loss: Any, *refs: Any) -> Any:
    return stepped(goal(terms={"a": term(loss, *refs)}))


def remembering(returned: Callable[[torch.Tensor, torch.Tensor], Any]) -> Any:
    def loss(x: torch.Tensor, y: torch.Tensor, *, state: torch.Tensor) -> Any:
        return returned((x - y).square().mean(-1), state)

    kept = term(loss, student.logits, teacher.logits, state=torch.zeros(3))
    return stepped(goal(terms={"a": kept}))


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return Net()


def lossy_kl(**options: Any) -> Any:
    return stepped(goal(terms={"a": term(kl, student.logits, teacher.logits, **options)}))


def accurate(labels: Any) -> dict[str, Any]:
    return {"a": fkd.metric(fkd.metrics.accuracy, student.logits, labels)}


DATA = torch.utils.data.TensorDataset(ROW["x"], ROW["y"])
FLOATS = {"x": ROW["x"].double(), "y": ROW["y"]}

MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "a state that is not returned": (
        lambda: remembering(lambda x, state: x),
        r"loss has a state, and returned a tensor \(6,\); a pair is expected: return values, new"),
    "a state that grows": (
        lambda: remembering(lambda x, state: (x, torch.cat([state, x.detach()]))),
        r"given state, a tensor \(3,\), and returned a tensor \(9,\).*keeps its shapes"),
    "a state of another kind": (
        lambda: remembering(lambda x, state: (x, {"mean": state})),
        "returned a mapping with .*as the new one; the same structure is expected"),
    "a batch that is not returned": (
        lambda: fitted(prepare=lambda state, row: None), "prepare returned None; the batch"),
    "a class for a model": (
        lambda: stepped(goal(student=fkd.trainable(Net))), r"'student': is the class Net.*Net\("),  # type: ignore[arg-type]
    "a module that is not wrapped": (
        lambda: stepped(goal(student=Net())), r"'student' is a Net; fkd.trainable\(module\)"),
    "a name for a student": (
        lambda: stepped(goal(student=fkd.trainable("bert"))), "the string 'bert'"),  # type: ignore[arg-type]
    "a name for a model": (
        lambda: stepped(goal(teacher=fkd.frozen("bert"))), "the string 'bert'.*from_pretrained"),  # type: ignore[arg-type]
    "a tokenizer for a model": (
        lambda: stepped(goal(teacher=fkd.frozen(Tokenizer()))), "It is a tokenizer.*fkd.check"),  # type: ignore[arg-type]
    "a state dict for a model": (
        lambda: stepped(goal(teacher=fkd.frozen(Net().state_dict()))), "load_state_dict"),  # type: ignore[arg-type]
    "a model compiled before": (
        lambda: stepped(goal(student=fkd.trainable(torch.compile(Net())))), "module._orig_mod"),
    "a parallel model": (
        lambda: stepped(goal(student=fkd.trainable(nn.DataParallel(Net())))), "module.module"),
    "a model without values": (
        lambda: stepped(goal(student=fkd.trainable(on_meta()))), "'linear.weight' on the meta"),
    "a lazy model": (
        lambda: stepped(goal(student=fkd.trainable(nn.LazyLinear(3)))), "'weight'.*Run the module"),
    "numbers in float64": (
        lambda: stepped(row=FLOATS), r"parameters are float32; x is float64.*\.to\(torch.float32"),
    "a teacher in float16": (
        lambda: stepped(goal(teacher=fkd.frozen(Net().half()))), "float16; x is float32"),
    "an optimizer of a dict": (
        lambda: stepped(optimizer=lambda p: torch.optim.SGD(p.values())), "one list of .name, par"),
    "a rate that is None": (lambda: stepped(lr=lambda step: None), "lr failed at step 0: Type"),
    "a rate of two arguments": (lambda: stepped(lr=lambda a, b: 1.0), "function of the step alone"),
    "a negative rate": (lambda: stepped(lr=lambda step: -1.0), "lr gives -1.0 at step 0"),
    "turns that are None": (
        lambda: stepped(when={"student": lambda step: None}), "when gives None at step 0"),
    "a share for steps": (lambda: warmup(0.1), r"warmup: steps is 0.1.*int\(share"),  # type: ignore[arg-type]
    "logits for log-probabilities": (
        lambda: lossy(nn.KLDivLoss(), student.logits, teacher.logits), "KLDivLoss expects log-"),
    "logits for kl_div": (
        lambda: lossy(nn.functional.kl_div, student.logits, teacher.logits), "fkd.losses.kl"),
    "logits for nll_loss": (
        lambda: lossy(nn.functional.nll_loss, student.logits, batch.y), "losses.cross_entropy"),
    "labels in a list": (lambda: of_labels(ROW["y"].tolist()), "list of 6 numbers.*torch.tensor"),
    "labels of True and False": (lambda: of_labels(ROW["y"] > 1), r"bool.*labels.long\(\)"),
    "one-hot integers": (
        lambda: of_labels(nn.functional.one_hot(ROW["y"], 3)), r"labels.argmax\(-1\)"),
    "samples for a batch": (
        lambda: stepped(row=[{"x": x, "y": y} for x, y in zip(*ROW.values(), strict=True)]),
        "A list of samples.*collate_fn"),
    "a name in a tuple": (
        lambda: stepped(row=tuple(ROW.values())), r"by its place: batch\[0\] or batch\[1\]"),
    "a name in an output that is a tuple": (
        lambda: stepped(goal(student=fkd.trainable(Pair()))), r"place: student\[0\] or student\[1"),
    "labels in columns": (
        lambda: of_labels([ROW["y"][:3], ROW["y"][3:]]), r"batch.y is a list of 2.*with_format"),
    "inputs in columns": (
        lambda: stepped(row={"x": [*ROW["x"]], "y": ROW["y"]}), "x is a list of 6.*with_format"),
    "a field of another name": (
        lambda: stepped(goal(student=fkd.trainable(nn.Linear(4, 3)))),
        r"takes 'input'.*call it so.*trainable\(module, inputs=lambda batch: batch\['x'\]\)"),
    "a student without its sweep": (
        lambda: swept(metrics={"a": fkd.metric(fkd.metrics.accuracy, student.logits, batch.y)}),
        r"each member of a sweep has its own. Say whose: fkd.ref\('cold/student'\) or fkd.ref\("),
    "a label that is no class, later": (
        lambda: fitted([ROW, {**ROW, "y": ROW["y"] + 3}]),
        r"batch 1 of epoch 0.*step failed.*'ce': batch.y has the label 3; 0 to 2 are expected"),
    "numbers of another width, later": (
        lambda: fitted([ROW, {**ROW, "x": torch.randn(6, 5)}]),
        r"batch 1 of epoch 0.*step failed.*model 'student'.*x=a tensor \(6, 5\)"),
    "a batch without values": (
        lambda: stepped(row={"x": ROW["x"].to("meta"), "y": ROW["y"]}), "a batch has .* meta"),
    "a data set for a loader": (lambda: fitted(DATA), r"gives samples.*DataLoader\("),
    "a path for a loader": (lambda: fitted("train.csv"), "loader is 'train.csv'; an iterable"),
    "a loader without a seed": (lambda: fitted(lambda: [ROW]), "called with a seed"),
    "a generator for epochs": (
        lambda: fitted((row for row in [ROW]), epochs=2), "loader is a generator.*lambda seed"),
    "a generator for dev": (
        lambda: fitted(dev=(row for row in [ROW]), epochs=2), "dev is a generator.*several times"),
    "a metric without refs": (
        lambda: fitted(dev=[ROW], metrics={"acc": fkd.metrics.accuracy}),
        r"'acc'.*fkd.metric\(accuracy, student.logits, batch.labels\)"),
    "a metric that gives a number": (
        lambda: fitted(dev=[ROW], metrics={"acc": fkd.metric(lambda x: x.mean().item(), batch.x)}),
        "'acc': <lambda> returned a float; a tensor"),
    "labels that are words": (
        lambda: of_labels(["cat"] * 6), r"no 'y' here.*batch has 'y', a list of 6.*collate"),
    "labels that are words, in a run": (
        lambda: fitted([{**ROW, "y": ["cat"] * 6}]), r"batch has 'y', a list of 6.*collate"),
    "labels that are words, in a logged run": (
        lambda: fitted([{**ROW, "y": ["cat"] * 6}], log_dir=tempfile.mkdtemp()), "batch has 'y'"),
    "no labels": (
        lambda: fkd.check(goal(), {**ROW, "y": None}), "batch.y is a NoneType; a tensor is exp"),
    "one label": (lambda: fkd.check(goal(), {**ROW, "y": 3}), "batch.y is a int; a tensor is exp"),
    "a loader for a batch": (
        lambda: fkd.check(goal(), torch.utils.data.DataLoader(DATA)),
        r"batch is a DataLoader; one batch.*next\(iter\(loader\)\)"),
    "an iterator for a batch": (
        lambda: fkd.check(goal(), iter([ROW])), r"a list_iterator; one batch.*next\(batches\)"),
    "no batch": (lambda: fkd.check(goal(), None), "batch is a NoneType; a batch is expected"),
    "a path for a batch": (lambda: fkd.check(goal(), "a.csv"), "batch is a str; a batch is exp"),
    "samples for one input": (
        lambda: stepped(goal(student=fkd.trainable(Net(), inputs=lambda b: b["x"])),
                        row={"x": [*ROW["x"]], "y": ROW["y"]}),
        r"inputs gave a list of 6, which are so many arguments.*torch.stack"),
    "a temperature without its name": (
        lambda: term(kl, student.logits, teacher.logits, 4.0), "its name.*: temperature=4.0"),
    "a number for a teacher": (
        lambda: term(kl, student.logits, 4.0), r"teacher_logits=4.0.*torch.tensor\(4.0\)"),
    "temperatures by class": (
        lambda: lossy_kl(temperature=torch.tensor([1.0, 2.0, 3.0])),
        r"kl: temperature \(3,\); a number.*logits \(6, 3\): \(6, 1\)"),
    "a metric of labels in floats": (
        lambda: fitted(dev=[{**ROW, "z": ROW["y"].float()}], metrics=accurate(batch.z)),
        r"accuracy: labels \(6,\) have dtype torch.float32; class numbers"),
    "a metric of swapped values": (
        lambda: fitted(dev=[ROW], metrics={
            "a": fkd.metric(fkd.metrics.accuracy, batch.y, student.logits)}),
        r"accuracy: labels \(6, 3\).*The order is accuracy\(logits, labels\)"),
    "a metric of labels in a column": (
        lambda: fitted(dev=[{**ROW, "z": ROW["y"][:, None]}], metrics=accurate(batch.z)),
        r"accuracy: labels \(6, 1\) must have the shape \(6,\)"),
    "a module for a name": (
        lambda: export(goal(), train_step(goal(), sgd).init(), Net()), "name is a Net; the name"),  # type: ignore[arg-type]
}  # fmt: skip


@pytest.mark.plain
@pytest.mark.parametrize("name", MISTAKES)
def test_it_is_said_before_a_step(name: str) -> None:
    call, message = MISTAKES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises((TypeError, ValueError, LoopError), match=f"(?s){message}"):
            call()


WITH_LABELS = sorted(
    name
    for name in fkd.losses.__all__
    if inspect.isfunction(loss := getattr(fkd.losses, name))
    and {"student_logits", "labels"} <= inspect.signature(loss).parameters.keys()
    and name != "binary_cross_entropy"  # whose labels are no classes
)


def against_labels(name: str, **kwargs: Any) -> fkd.Objective:
    loss = getattr(fkd.losses, name)
    known = {"student_logits": student.logits, "labels": batch.y, "soft_label": batch.w}
    parameters = inspect.signature(loss).parameters
    refs = {n: known.get(n, teacher.logits) for n in parameters if n in known or "_logits" in n}
    return goal(terms={"a": term(loss, **refs, **kwargs)})


@pytest.mark.plain
@pytest.mark.parametrize("name", WITH_LABELS)
def test_a_label_that_is_no_class_is_told_of_every_loss(name: str) -> None:
    row = {**ROW, "w": torch.full((6,), 0.5), "m": torch.arange(6) > 0}
    fkd.check(against_labels(name), row)
    for wrong in (3, -1, 2**40):
        bad = {**row, "y": torch.tensor([wrong, 1, 2, 0, 1, 2])}
        with pytest.raises(fkd.ObjectiveError, match=f"'a': batch.y has the label {wrong}; 0 to 2"):
            fkd.check(against_labels(name), bad)
        fkd.check(against_labels(name, where=batch.m), bad)  # it does not count


def test_a_label_that_is_no_class_is_told_of_a_metric():
    def measured(metric: Any) -> fkd.Objective:
        plain = term(kl, student.logits, teacher.logits)
        return goal(terms={"kd": plain, "a": fkd.metric(metric, student.logits, batch.y)})

    for metric in (fkd.metrics.accuracy, fkd.metrics.perplexity):
        fkd.check(measured(metric), {**ROW, "y": torch.tensor([-100, 1, 2, 0, 1, 2])})
        with pytest.raises(fkd.ObjectiveError, match=r"'a': batch.y has the label 3; 0"):
            fkd.check(measured(metric), {**ROW, "y": torch.tensor([3, 1, 2, 0, 1, 2])})


@pytest.mark.plain
def test_a_metric_of_true_and_false_is_its_share():
    def right(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return logits.argmax(-1) == labels

    kinds = {
        "bool": lambda x, y: right(x, y),
        "uint8": lambda x, y: right(x, y).byte(),
        "int": lambda x, y: right(x, y).long(),
        "float": lambda x, y: right(x, y).float(),
    }
    metrics: Any = {n: fkd.metric(fn, student.logits, batch.y) for n, fn in kinds.items()}
    many = {"x": torch.randn(300, 4), "y": torch.arange(300) % 3}  # more than a byte can count
    *_, end = fitted(dev=[many, many, ROW], metrics=metrics)
    values = {n: end.evaluations[-1][n] for n in kinds}
    assert len({round(v, 6) for v in values.values()}) == 1 and 0 < values["float"] < 1


@pytest.mark.plain
def test_a_batch_of_which_nothing_counts_is_told():
    masked = goal(terms={"kd": term(kl, student.logits, teacher.logits, where=batch.m)})
    row = {**ROW, "m": torch.zeros(6, dtype=torch.bool)}
    (note,) = fkd.check(masked, row).notes
    assert note.startswith("term 'kd': no position of this batch counts, by where=batch.m")
    (note,) = fkd.check(goal(), {**ROW, "y": torch.full((6,), -100)}).notes
    assert note.startswith("term 'ce': no position of this batch counts, by its labels")
    assert not fkd.check(masked, {**row, "m": row["m"].index_fill(0, torch.tensor(2), True)}).notes


@pytest.mark.plain
def test_updates_that_are_left_out_are_told_once(caplog):
    bad = {**ROW, "x": ROW["x"] * float("nan")}
    with caplog.at_level(logging.WARNING, logger="fkd"):
        *_, end = fitted([ROW, bad, ROW, bad], epochs=2, log_every=2)
    told = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert len(told) == 1 and "(step 2): 1 of the last 2 updates were left out" in told[0]
    assert "loss/kd, loss/ce" in told[0]
    assert end.message.startswith("2 epochs are done; 4 updates were left out")
    caplog.clear()
    *_, end = fitted([ROW])
    assert end.message == "1 epoch is done" and not caplog.records


@pytest.mark.plain
def test_a_schedule_of_rates_is_told_from_one_of_factors():
    with pytest.warns(UserWarning, match=r"at most 0.0001.*factor.*AdamW\(params, lr="):
        stepped(lr=linear(1e-4, 0.0, 10))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stepped(lr=warmup(100, linear(1.0, 0.0, 1000)))
        stepped(lr=lambda step: 1e-4)  # whoever writes a function has read what it is


@pytest.mark.plain
def test_a_state_that_was_left_behind_is_told():
    step = train_step(goal(), sgd, compile=False)
    first = step.init()
    second, _ = step(first, ROW)
    with pytest.warns(RuntimeWarning, match="step 0 of this state was taken before"):
        step(first, ROW)
    step = train_step(goal(), sgd, compile=False)
    second, _ = step(step.init(), ROW)
    third, _ = step(second, ROW)
    with pytest.warns(RuntimeWarning, match="step 1 of this state"):
        step(second, ROW)
    step = train_step(goal(), sgd, compile=False)
    first = step.init()
    run(step, first, [ROW] * 3, epochs=1, progress=False)
    with pytest.warns(RuntimeWarning, match="step 0 of this state was taken before"):
        run(step, first, [ROW], epochs=1, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(third._replace(step=0), ROW)  # a schedule that begins again


@pytest.mark.plain
def test_an_output_that_is_given_when_asked_for_is_told():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8,
    )  # fmt: skip
    bert = transformers.BertForTokenClassification(config)
    terms = {"h": term(fkd.losses.mse, student.hidden_state[1], batch.target)}
    row = {"input_ids": torch.ones(2, 3, dtype=torch.long), "target": torch.randn(2, 3, 8)}
    with pytest.raises(fkd.ObjectiveError, match=r"logits\. Did you mean 'hidden_states'"):
        fkd.check(fkd.Objective(terms, student=fkd.trainable(bert)), row)


@pytest.mark.plain
def test_a_step_that_fails_says_which_term():
    step = train_step(goal(), sgd, compile=False)
    state, _ = step(step.init(), ROW)
    with pytest.raises(Exception, match="out of bounds") as caught:
        step(state, {**ROW, "y": ROW["y"] + 3})
    assert "term 'ce': batch.y has the label 3" in caught.value.__notes__[0]


@pytest.mark.plain
def test_a_dataclass_is_a_batch():
    objective = goal()
    found = [stepped(copy.deepcopy(objective), row)[1] for row in (ROW, Row(**ROW))]
    assert same_bits(*found)


@pytest.mark.plain
def test_a_model_in_bfloat16_runs_in_autocast():
    objective = goal(teacher=fkd.frozen(Net().bfloat16()))
    with pytest.raises(fkd.ObjectiveError, match="bfloat16; x is float32"):
        fkd.check(objective, ROW)
    assert fkd.check(objective, ROW, autocast=torch.bfloat16).rows
    _, metrics = stepped(objective, precision="bf16")
    assert metrics["finite"].item() == 1.0


@pytest.mark.plain
def test_a_recurrent_teacher_in_bfloat16_is_told():
    models = {
        "student": fkd.trainable(nn.Linear(4, 3)),
        "teacher": fkd.frozen(nn.GRU(4, 3).bfloat16()),
    }
    objective = fkd.Objective({"kd": term(kl, student.logits, teacher[0])}, **models)
    with pytest.raises(fkd.ObjectiveError, match=r"bfloat16; input is float32\. Convert what"):
        fkd.check(objective, {"input": ROW["x"]})
