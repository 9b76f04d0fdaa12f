"""Arguments of another kind than is meant: each is said, before anything is done with it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fkd
from fkd import batch, student, teacher, term
from fkd.loops import BucketBatchSampler, evaluate, export, fit, next_tokens, score, train_step
from fkd.losses import cross_entropy, kl, mse

ROW = {"x": torch.zeros(6, 4), "y": torch.zeros(6, dtype=torch.long)}


def goal() -> fkd.Objective:
    inputs: Any = {"inputs": lambda row: row["x"]}
    return fkd.Objective(
        {"kd": term(kl, student.logits, teacher.logits)},
        student=fkd.trainable(nn.Linear(4, 3), **inputs),
        teacher=fkd.frozen(nn.Linear(4, 3), **inputs),
    )


def adam(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=1e-3)


def step(**options: Any) -> Any:
    return train_step(goal(), adam, **{"compile": False, **options})


def fitted(*args: Any, **options: Any) -> Any:
    one = step()
    args = args or (one, one.init(), [ROW])
    return fit(*args, **{"epochs": 1, "progress": False, **options})


X = torch.zeros(2, 3)


def swept(members: Any) -> Any:
    return fkd.sweeps.sweep(goal(), adam, members, compile=False)


def labelled(y: list[int]) -> Any:
    """A check of a classifier of three classes."""
    one = fkd.Objective(
        {"ce": term(cross_entropy, student.logits, batch.y)},
        student=fkd.trainable(nn.Linear(4, 3), inputs=lambda row: row["x"]),
    )
    return fkd.check(one, {"x": torch.zeros(len(y), 4), "y": torch.tensor(y)})


MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "lr, a number": (lambda: step(lr=0.1), "lr is 0.1; a schedule .* given to the optimizer"),
    "lr of a model": (lambda: step(lr={"student": 1.0}), "lr is 1.0; a schedule"),
    "clip, a string": (lambda: step(clip="1"), r"clip is a str \('1'\); a positive norm"),
    "clip, True": (lambda: step(clip=True), r"clip is a bool \(True\); a positive norm"),
    "accumulate, a float": (lambda: step(accumulate=2.0), "accumulate is a float .* whole number"),
    "compile, a mode": (lambda: step(compile="max-autotune"), "compile is a str .*'mode'"),
    "compile, a typo": (lambda: step(compile={"mod": 1}), "no argument 'mod'. Did you mean 'mode'"),
    "when, a number": (lambda: step(when={"student": 3}), "when is 3; a function step -> bool"),
    "when, a function": (lambda: step(when=lambda s: True), "when is a function; {model"),
    "combine, a string": (lambda: step(combine="pcgrad"), "combine is 'pcgrad'.*fkd.gradients"),
    "mesh, a device": (lambda: step(mesh="cpu"), r"mesh is a str \('cpu'\); a DeviceMesh .*device"),
    "a dict for an objective": (lambda: train_step({}, adam), "objective is a dict"),  # type: ignore[arg-type]
    "seed, a string": (lambda: step().init("0"), r"seed is a str \('0'\); a whole number"),
    "seed, a float": (lambda: step().init(0.5), r"seed is a float \(0.5\)"),
    "modules, a typo": (
        lambda: step().init(modules={"studnet": nn.Linear(4, 3)}), "names 'studnet'.*'student'"),
    "modules, a number": (lambda: step().init(modules={"student": 3}), "is a int .3.; a module"),
    "step, the other way round": (lambda: step()(ROW, step().init()), "state is a dict"),
    "fit, the other way round": (lambda: fitted(step().init(), step(), [ROW]), "step is a State"),
    "fit, without a state": (lambda: fitted(step(), [ROW]), "fit: .*missing.*'loader'"),
    "fit, a typo": (lambda: fitted(epoch=1), "'epoch'. Did you mean 'epochs'"),
    "fit, one batch": (lambda: fitted(step(), step().init(), ROW), "looks like one batch.*list"),
    "fit, a tensor": (lambda: fitted(step(), step().init(), X), "Tensor, which looks like one"),
    "fit, no loader": (lambda: fitted(step(), step().init(), None), "loader is None"),
    "fit, one dev batch": (lambda: fitted(dev=ROW), "dev is a dict, which looks like one batch"),
    "epochs, True": (lambda: fitted(epochs=True), "epochs is True; a whole number"),
    "callbacks, None": (lambda: fitted(callbacks=None), "callbacks is None; a list of functions"),
    "metrics, a list": (lambda: fitted(metrics=[len], dev=[ROW]), "metrics is a list; a dict"),
    "config, a list": (lambda: fitted(config=[1]), "config is a list; a dict"),
    "keep_last, None": (lambda: fitted(keep_last=None), "keep_last is None; a whole number"),
    "checkpoint_dir, a number": (lambda: fitted(checkpoint_dir=3), "checkpoint_dir is a int"),
    "evaluate, a step": (lambda: evaluate(step(), step().init(), [ROW]), "is a TrainStep"),
    "evaluate, parts": (lambda: evaluate(goal(), goal().init(), [ROW]), "state is a Parts"),  # type: ignore[arg-type]
    "evaluate, a function": (
        lambda: evaluate(goal(), step().init(), [ROW], metrics=len), "metrics is a builtin"),  # type: ignore[arg-type]
    "export, the other way round": (lambda: export(step().init(), goal()), "objective is a State"),  # type: ignore[arg-type]
    "score, a ref": (lambda: score(goal(), None, [ROW], student.logits), "values is a .*name: ref"),  # type: ignore[arg-type]
    "check, the other way round": (lambda: fkd.check(ROW, goal()), "objective is a dict"),  # type: ignore[arg-type]
    "draw, nothing": (lambda: fkd.draw(None), "draw: objective is None"),  # type: ignore[arg-type]
    "layers, a float": (lambda: fkd.layer_map(student=2.0, teacher=4), "student is a float"),  # type: ignore[arg-type]
    "tokens, a list": (lambda: next_tokens([1, 2]), r"labels is \[1, 2\]; a tensor"),  # type: ignore[arg-type]
    "tokens, without rows": (lambda: next_tokens(torch.tensor([1, 2])), "labels is tensor"),
    "logits, an array": (lambda: kl(np.zeros((2, 3)), X), "student_logits is a ndarray; a tensor"),  # type: ignore[arg-type]
    "logits, a list": (lambda: kl([1.0], X), "student_logits is a list; a tensor"),  # type: ignore[arg-type]
    "logits, None": (lambda: kl(X, None), "teacher_logits is None; a tensor is expected.$"),  # type: ignore[arg-type]
    "logits, an output": (lambda: kl({"logits": X}, X), "is a dict.* Pass its logits"),  # type: ignore[arg-type]
    "hidden, a list": (lambda: mse([1.0], X), "is a list; a tensor"),  # type: ignore[arg-type]
    "logits, sparse": (lambda: kl(X.to_sparse(), X), r"layout torch.sparse_coo; call to_dense\(\)"),
    "mask, a list": (lambda: kl(X, X, where=[True, False]), "where is a list; a tensor"),  # type: ignore[arg-type]
    "temperature, a string": (lambda: kl(X, X, temperature="2"), "temperature is a str"),  # type: ignore[arg-type]
    "temperature, a list": (lambda: kl(X, X, temperature=[1.0]), "temperature is a list"),  # type: ignore[arg-type]
    "objective, the other way round": (
        lambda: goal()(ROW, goal().init()), r"parts is a dict.*objective\(parts, batch\)"),  # type: ignore[arg-type]
    "cache, a step": (lambda: fkd.sources.cache(step(), [ROW], "x"), "TrainStep.*step.objective"),
    "cache, no loader": (lambda: fkd.sources.cache(goal(), None, "x"), "cache: loader is None"),  # type: ignore[arg-type]
    "cache, one batch": (lambda: fkd.sources.cache(goal(), ROW, "x"), "looks like one batch"),
    "cache, no folder": (lambda: fkd.sources.cache(goal(), [ROW], None), "folder is None"),  # type: ignore[arg-type]
    "cache, keep": (lambda: fkd.sources.cache(goal(), [ROW], "x", keep=[1]), "keep is a list"),  # type: ignore[arg-type]
    "bind, a path": (lambda: fkd.sources.bind(goal(), "path"), r"source is a str.*sources.open"),  # type: ignore[arg-type]
    "bind, a step": (lambda: fkd.sources.bind(step(), None), "TrainStep.*step.objective"),  # type: ignore[arg-type]
    "live, a step": (lambda: fkd.sources.live(step()), "live: objective is a TrainStep"),
    "open, nothing": (lambda: fkd.sources.open(None), "open: folder is None; a path"),  # type: ignore[arg-type]
    "stages, a list": (lambda: fkd.stages.stages([step()]), r"run is a list; \{name"),  # type: ignore[arg-type]
    "stages, a step": (lambda: fkd.stages.stages({"a": step()}), r"run\['a'\] is a TrainStep"),
    "stage, an objective": (lambda: fkd.stages.stage(goal()), "step is a Objective; a step from"),  # type: ignore[arg-type]
    "sweep, a list": (lambda: swept([fkd.sweeps.member()]), r"members is a list; \{name"),
    "sweep, knobs": (lambda: swept({"a": {"kd/temperature": 2}}), r"members\['a'\] is a dict"),
    "sweep, a step": (
        lambda: fkd.sweeps.sweep(step(), adam, {}), "sweep: objective is a TrainStep"),
    "member, a list": (lambda: fkd.sweeps.member([1]), "knobs is a list"),  # type: ignore[arg-type]
    "regressor, channels": (lambda: fkd.adapters.ConvRegressor(3, 5), r"_shape is 3; \(chan"),  # type: ignore[arg-type]
    "regressor, no width": (
        lambda: fkd.adapters.ConvRegressor((3, 4), (5, 4, 4)), r"student_shape is \(3, 4\)"),  # type: ignore[arg-type]
    "buckets, nothing": (lambda: BucketBatchSampler(None, 4), "lengths is None.*len.row"),  # type: ignore[arg-type]
    "buckets, rows": (lambda: BucketBatchSampler([[1, 2], [3, 4]], 4), "lengths is a list"),  # type: ignore[list-item]
    "buckets, a string": (lambda: BucketBatchSampler([3], "4"), "batch_size is a str"),  # type: ignore[arg-type]
    "evaluate, one batch": (lambda: evaluate(goal(), step().init(), ROW), "looks like one batch"),
    "device, none such": (lambda: step().init(device="cuda:77"), "'cuda:77', and torch sees"),
    "device, a typo": (lambda: step().init(device="gpu"), "device is 'gpu'; 'cpu', 'cuda'"),
    "device, a list": (lambda: step().init(device=["cpu"]), "device is a list"),
    "label, too high": (lambda: labelled([0, 3]), "batch.y has the label 3; 0 to 2 are expected"),
    "label, negative": (lambda: labelled([0, -1]), "the label -1.*ignore_index=-100"),
}  # fmt: skip


@pytest.mark.plain
@pytest.mark.parametrize("name", MISTAKES)
def test_it_is_said(name: str) -> None:
    call, message = MISTAKES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with pytest.raises((TypeError, ValueError), match=message):
            call()


@pytest.mark.plain
def test_what_is_meant_is_taken() -> None:
    """Refs in the place of tensors, and whatever is callable or a path."""
    assert repr(next_tokens(batch.y)).startswith("torch.cat(") or next_tokens(batch.y) is not None
    assert step(accumulate=2, clip=1, lr=lambda s: 1.0, compile={}).accumulate == 2
    one = step()
    list(fit(one, one.init(), lambda seed: [ROW], steps=1, progress=False, callbacks=()))
    assert list(BucketBatchSampler(np.array([3, 4]), np.int64(2)))  # type: ignore[arg-type]
    assert labelled([0, 2, -100]) is not None
    assert cross_entropy(X, torch.tensor([0, 1])).shape == (2,)
