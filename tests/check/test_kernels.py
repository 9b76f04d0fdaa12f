"""What kernels refuse for its dtype is refused by the dry run, and nothing else is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fkd
from fkd import ObjectiveError, batch, student, term, trainable
from fkd._check import kernels
from fkd.loops import train_step

X = torch.randn(6, 4)
MAPS = torch.randn(6, 4, 3)


def objective(net: nn.Module, **terms: Any) -> fkd.Objective:
    terms = terms or {"l": term(square, student.logits)}
    return fkd.Objective(terms, student=trainable(net, inputs=lambda b: b["x"]))


def square(x: Tensor) -> Tensor:
    return x.float().square().flatten(1).mean(-1)


def both(of: fkd.Objective, data: Any, precision: str = "fp32") -> tuple[str, str]:
    """What is said of a batch by `check`, and by a step that nothing has checked."""
    autocast = {"fp32": None, "bf16": torch.bfloat16}[precision]
    said = ["", ""]
    try:
        fkd.check(of, data, autocast=autocast)
    except ObjectiveError as error:
        said[0] = str(error)
    step = train_step(of, lambda p: torch.optim.SGD(p, lr=0.1), compile=False, precision=precision)
    step._first = lambda *_: None  # pyright: ignore[reportPrivateUsage]
    try:
        step(step.init(), data)
    except (RuntimeError, IndexError) as error:
        said[1] = str(error)
    return said[0], said[1]


NORMS: dict[str, tuple[nn.Module, Tensor]] = {
    "batch": (nn.BatchNorm1d(4), X),
    "layer": (nn.LayerNorm(4), X),
    "group": (nn.GroupNorm(2, 4), X),
    "instance": (nn.InstanceNorm1d(4, affine=True), MAPS),
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_a_norm_is_refused_where_its_kernel_refuses(name, own, given, precision):
    norm, x = NORMS[name]
    of = objective(nn.Sequential(norm, nn.Identity()).to(own))
    checked, done = both(of, {"x": x.to(given)}, precision)
    assert bool(checked) == bool(done), (checked, done)
    if checked and given is torch.float32:
        assert "model 'student'" in checked and f"Its parameters are {str(own)[6:]}" in checked
        assert "0 is float32. Convert" in checked


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_a_norm_of_two_dtypes(name, given):
    norm, x = NORMS[name]
    for weight, bias in ((torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)):
        mixed = copy.deepcopy(norm).float()
        mixed.weight = nn.Parameter(mixed.weight.detach().to(weight))
        mixed.bias = nn.Parameter(mixed.bias.detach().to(bias))
        checked, done = both(objective(nn.Sequential(mixed, nn.Identity())), {"x": x.to(given)})
        assert bool(checked) == bool(done), (checked, done)


def test_what_is_tried_draws_nothing():
    def noisy(x: Tensor, y: Tensor) -> Tensor:
        return x[:, 0] + torch.rand_like(y.double()).float()

    of = objective(nn.Linear(4, 3), own=term(noisy, student.logits, batch.y))
    before = torch.get_rng_state()
    fkd.check(of, {"x": X, "y": torch.arange(6)})
    assert torch.equal(torch.get_rng_state(), before)


def test_a_norm_in_training_and_in_evaluation():
    for training in (True, False):
        net = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3).float()).train(training)
        net[0].bfloat16()
        assert all(both(objective(net), {"x": X}))


OWN_LOSSES: dict[str, tuple[Any, Tensor, bool]] = {
    "labels of int32": (lambda x, y: F.cross_entropy(x, y, reduction="none"), torch.int32, False),
    "labels of int64": (lambda x, y: F.cross_entropy(x, y, reduction="none"), torch.int64, True),
    "labels of uint8": (lambda x, y: F.cross_entropy(x, y, reduction="none"), torch.uint8, True),
    "targets of int64": (
        lambda x, y: F.binary_cross_entropy(x.sigmoid()[:, 0], y, reduction="none"),
        torch.int64,
        False,
    ),
    "a bool that is sorted": (lambda x, y: x[:, 0] * y.topk(1).indices, torch.bool, False),
    "other targets": (
        lambda x, y: F.mse_loss(x[:, 0], y.to(x), reduction="none"),
        torch.bfloat16,
        True,
    ),
    "a row in bfloat16": (lambda x, y: x @ y[:4], torch.bfloat16, False),
    "an index in floats": (lambda x, y: x.index_select(0, y)[:, 0], torch.bfloat16, False),
    "an index in float32": (lambda x, y: x.index_select(0, y)[:, 0], torch.float32, False),
    "an index of int32": (lambda x, y: x[y][:, 0], torch.int32, True),
    "an index of int16": (lambda x, y: x[y][:, 0], torch.int16, False),
    "bits of floats": (lambda x, y: x[:, 0] * (y & y), torch.float32, False),
    "bits of integers": (lambda x, y: x[:, 0] * (y & 1), torch.int32, True),
    "bits of two dtypes": (lambda x, y: x[:, 0] * (y & (y > 0)), torch.int16, True),
    "bits of integers and floats": (lambda x, y: x[:, 0] * (y.long() & y), torch.float16, False),
    "a choice by numbers": (lambda x, y: torch.where(y, x[:, 0], x[:, 1]), torch.int64, False),
    "noise like floats": (lambda x, y: x[:, 0] + torch.rand_like(y), torch.float64, True),
    "noise like integers": (lambda x, y: x[:, 0] + torch.rand_like(y), torch.int64, False),
    "coins of integers": (lambda x, y: x[:, 0] * torch.bernoulli(y), torch.int64, False),
    "dropout of integers": (lambda x, y: x[:, 0] * F.dropout(y), torch.int64, False),
    "a product of bool": (lambda x, y: x[:, 0] * (y[None] @ y), torch.bool, False),
}


@pytest.mark.parametrize("name", OWN_LOSSES)
def test_a_loss_of_ones_own_is_refused_where_its_kernel_refuses(name):
    loss, dtype, runs = OWN_LOSSES[name]
    of = objective(nn.Linear(4, 3), own=term(loss, student.logits, batch.y))
    y = torch.tensor([0, 1, 2, 0, 1, 1]).to(dtype)
    checked, done = both(of, {"x": X, "y": y})
    assert (not checked, not done) == (runs, runs), (checked, done)
    if not runs:
        assert checked.startswith("1 problem") and "term 'own'" in checked
        assert "student.logits -> (6, 3)" in checked


def test_an_operation_is_tried_once_and_only_if_it_is_small(monkeypatch):
    tried: list[int] = []
    zeros = kernels._zeros  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(kernels, "_zeros", lambda x: tried.append(x.numel()) or zeros(x))

    def many(x: Tensor) -> Tensor:
        for _ in range(5):
            x = x.bfloat16().exp().float()
        return x.mean(-1)

    of = objective(nn.Linear(4, 3), own=term(many, student.logits))
    fkd.check(of, {"x": X})
    fkd.check(of, {"x": torch.randn(2**19, 4)})
    assert 0 < tried.count(18) < 8  # five times each would be more
    assert max(tried) <= kernels._LARGEST  # pyright: ignore[reportPrivateUsage]


def test_what_is_tried_leaves_generators_and_buffers_alone():
    net = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3)).bfloat16()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    torch.manual_seed(3)
    numbers = torch.random.get_rng_state()
    fkd.check(objective(net), {"x": X.bfloat16()})
    assert torch.equal(numbers, torch.random.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_what_only_values_show_is_explained():
    def embedded(x: Tensor) -> Tensor:
        return x[:, 0] * F.embedding(x[:, 0].abs().long() + 7, torch.eye(3))[:, 0]

    of = objective(nn.Linear(4, 3), own=term(embedded, student.logits))
    step = train_step(of, lambda p: torch.optim.SGD(p, lr=0.1), compile=False)
    with pytest.raises(IndexError) as info:
        step(step.init(), {"x": X})
    note = info.value.__notes__[0]
    assert note.startswith("By the dry run of this batch: term 'own': IndexError: index out of")
    with pytest.raises(fkd.loops.LoopError, match="term 'own': IndexError"):
        fkd.loops.run(step, step.init(), [{"x": X}], epochs=1, progress=False)
