"""What a call of a model uses belongs to the call."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fkd
from fkd import Objective, batch, frozen, student, teacher, term, trainable
from fkd.losses import cross_entropy, kl, mse

from ..models import CNN, images


def objective() -> Objective:
    torch.manual_seed(0)
    return Objective(
        {
            "kd": term(kl, student.logits, teacher.logits),
            "ce": term(cross_entropy, student.logits, batch.labels),
            "tap": term(mse, student.tap("first"), teacher.tap("first")),
            "in": term(mse, student.tap("second", "input"), teacher.tap("second", "input")),
        },
        student=trainable(CNN()),
        teacher=frozen(CNN()),
    )


def in_threads(count: int, run: Callable[[int], Any]) -> list[Any]:
    """What `run(i)` gives in each of many threads that begin at one moment."""
    found, start = [None] * count, threading.Barrier(count)

    def work(i: int) -> None:
        start.wait()
        try:
            found[i] = run(i)
        except Exception as error:
            found[i] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def gradients(chosen: Objective, seed: int) -> list[torch.Tensor]:
    parts = chosen.init()
    generator = torch.Generator().manual_seed(seed)
    held = parts.trainable["student"]
    leaves = {
        n: (p + torch.randn(p.shape, generator=generator)).requires_grad_() for n, p in held.items()
    }
    loss, _ = chosen(parts._replace(trainable={"student": leaves}), images())
    return [loss.detach(), *torch.autograd.grad(loss, list(leaves.values()))]


@pytest.mark.plain
def test_one_objective_in_many_threads_has_the_values_of_one():
    chosen = objective()
    expected = [gradients(chosen, seed) for seed in range(16)]
    for _ in range(3):
        found = in_threads(16, lambda seed: gradients(chosen, seed))
        for a, b in zip(found, expected, strict=True):
            assert all(map(torch.equal, a, b))


@pytest.mark.plain
def test_an_objective_and_its_copies_do_not_meet():
    chosen = objective()
    copies = [chosen, *(copy.deepcopy(chosen) for _ in range(7))]
    expected = [gradients(chosen, seed) for seed in range(8)]
    for _ in range(3):
        found = in_threads(8, lambda seed: gradients(copies[seed], seed))
        for a, b in zip(found, expected, strict=True):
            assert all(map(torch.equal, a, b))
    ours, theirs = (o.program.applies["student"]._traced.module for o in copies[:2])
    assert not set(ours.modules()) & set(theirs.modules())


def test_a_copy_shares_nothing_with_what_it_was_copied_from():
    chosen = objective()
    copied = copy.deepcopy(chosen)
    same = {id(p) for p in chosen.models["student"].module.parameters()}
    assert not same & {id(p) for p in copied.models["student"].module.parameters()}
    for a, b in zip(gradients(chosen, 1), gradients(copied, 1), strict=True):
        assert torch.equal(a, b)


def test_the_function_of_a_model_can_be_pickled():
    chosen = objective()
    apply = pickle.loads(pickle.dumps(chosen.program.applies["student"]))
    parts, x = chosen.init(), images()["image"]
    params, buffers = parts.trainable["student"], parts.buffers["student"]
    found, expected = apply(params, buffers, (x,), {}), chosen.program.applies["student"]
    expected = expected(params, buffers, (x,), {})
    assert torch.equal(found.output.logits, expected.output.logits)
    assert found.taps.keys() == expected.taps.keys() != set()


@pytest.mark.plain
def test_checks_in_many_threads_agree():
    chosen, expected = objective(), str(fkd.check(objective(), images()))
    for _ in range(3):
        assert set(map(str, in_threads(30, lambda _: fkd.check(chosen, images())))) == {expected}


@pytest.mark.plain
def test_mistakes_found_in_many_threads_agree():
    chosen = Objective(
        {"kd": term(kl, student.logits, teacher.logits)},
        student=trainable(nn.Linear(4, 3)),
        teacher=frozen(nn.Linear(4, 5)),
    )
    with pytest.raises(fkd.ObjectiveError) as expected:
        fkd.check(chosen, torch.randn(2, 4))
    found = in_threads(30, lambda _: fkd.check(chosen, torch.randn(2, 4)))
    assert set(map(str, found)) == {str(expected.value)}


class Observer(nn.Module):
    """A buffer that is as large as the first data were, as observers for quantization have."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("scale", torch.zeros(0))

    def forward(self, x):
        self.scale.resize_(x.shape[-1]).copy_(x.abs().amax(0))
        return self.linear(x / self.scale)


def test_a_buffer_that_grows_is_found_before_a_step():
    model = Observer()
    chosen = Objective(
        {"ce": term(cross_entropy, student.logits, batch.y)}, student=trainable(model)
    )
    data = {"x": torch.randn(5, 4), "y": torch.tensor([0, 1, 2, 0, 1])}
    with pytest.raises(fkd.ObjectiveError, match=r"buffer 'scale' another shape, \(0,\) -> \(4,\)"):
        fkd.check(chosen, data)
    model(data["x"])
    chosen = Objective(chosen.terms, student=trainable(model))
    step = fkd.loops.train_step(chosen, lambda p: torch.optim.SGD(p, lr=0.1), compile=False)
    state, _ = step(step.init(), data)
    assert state.buffers["student"]["scale"].shape == (4,)
