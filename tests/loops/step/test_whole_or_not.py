"""A step is taken whole or not at all: parameters, buffers, EMA copies and loss states alike."""

from __future__ import annotations

import math

import optree
import pytest
import torch
from torch import nn

import fkd
from fkd import Objective, batch, ema, ref, student, term, trainable
from fkd.loops import train_step
from fkd.losses import mse

from ...models import same_bits


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3)
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(x))


def centred(values: torch.Tensor, *, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A loss whose state is the mean of what it has seen."""
    new = 0.9 * state + 0.1 * values.detach().mean((0, 1))
    return (values - state).square().mean(-1), new


def make(**options: object) -> tuple[fkd.loops.TrainStep, fkd.loops.State]:
    torch.manual_seed(0)
    objective = Objective(
        {
            "mse": term(mse, student.logits, batch.y),
            "slow": term(mse, student.logits, ref("slow").logits),
            "state": term(centred, student.logits, state=torch.zeros(())),
        },
        student=trainable(Normed()),
        slow=ema("student", decay=0.9),
    )
    step = train_step(objective, lambda p: torch.optim.AdamW(p, lr=1e-2), compile=False, **options)
    return step, step.init()


def data(seed: int, rows: int = 8, factor: float = 1.0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 4, generator=g)
    return {"x": x * factor, "y": torch.randn(rows, 3, generator=g)}


OUTLIERS = {
    "1e30": data(9, factor=1e30),
    "nan": data(9, factor=math.nan),
    "no rows": data(9, rows=0),
}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", OUTLIERS)
def test_after_an_outlier_the_run_goes_on_as_if_it_had_not_been(name, accumulate):
    if accumulate == 2 and name == "no rows":
        return  # refused: fewer examples than parts
    step, state = make(accumulate=accumulate)
    state, _ = step(state, data(0))
    before = optree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, state.parts)
    state, metrics = step(state, OUTLIERS[name])
    assert metrics["finite"] == 0 and state.skipped == 1
    assert same_bits(state.parts, before)
    for seed in range(1, 6):
        state, metrics = step(state, data(seed))
        assert metrics["finite"] == 1
    assert state.skipped == 1


def test_a_buffer_that_was_never_finite_is_no_outlier():
    step, state = make()
    state, metrics = step(state, data(0))
    assert metrics["finite"] == 1 and torch.isinf(state.buffers["student"]["mask"]).any()


@pytest.mark.parametrize("size", [1e20, 1e30])
def test_a_large_gradient_is_clipped_to_the_norm(size):
    net = nn.Linear(3, 2)
    objective = Objective(term(lambda x: x.sum(-1) * size, student.logits), student=trainable(net))
    make_sgd = lambda p: torch.optim.SGD(p, lr=1.0)
    step = train_step(objective, make_sgd, clip=1.0, compile=False)
    start = step.init()
    before = {n: p.clone() for n, p in start.trainable["student"].items()}
    state, metrics = step(start, torch.ones(1, 3))
    moved = [before[n] - p for n, p in state.trainable["student"].items()]
    assert metrics["finite"] == 1 and state.skipped == 0
    assert metrics["grad_norm/total"] == pytest.approx(size * math.sqrt(8), rel=1e-5)
    norm = torch.stack([x.square().sum() for x in moved]).sum().sqrt()
    torch.testing.assert_close(norm, torch.ones(()))


def test_without_clipping_a_gradient_whose_square_overflows_is_left_out():
    objective = Objective(
        term(lambda x: x.sum(-1) * 1e20, student.logits), student=trainable(nn.Linear(3, 2))
    )
    step = train_step(objective, lambda p: torch.optim.AdamW(p, lr=1e-3), compile=False)
    state, _ = step(step.init(), torch.ones(1, 3))
    assert state.skipped == 1 and not state.optimizer


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("values", [(3.0, 4.0), (1e-9, 1e-10), (3e30, 4e30), (1e16, 1e-3)])
def test_norms_are_those_of_float64(values, together):
    from fkd.loops._step.gradient import norms_of, total_norm

    grads = [torch.tensor([values[0]]), torch.tensor([[values[1]]])]
    norms = norms_of(
        grads, {"a": {"x": grads[0]}, "b": {"y": grads[1]}}, wide=True, together=together
    )
    expected = math.hypot(*values)
    assert float(total_norm(norms)) == pytest.approx(expected, rel=1e-6)
    of_one = {"a": {"x": grads[0], "y": grads[1]}}
    norm = norms_of(grads, of_one, wide=True, together=together)["a"]
    assert norm.dtype == torch.float32 and float(norm) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_norm_without_clipping_is_finite_where_the_squares_are(together, dtype):
    from fkd.loops._step.gradient import norms_of

    for size, finite in [(1e18, True), (1e20, False)]:
        grads = [torch.full((3,), size, dtype=dtype), torch.ones(2, dtype=dtype)]
        params = {"a": {"x": grads[0], "y": grads[1]}}
        norm = norms_of(grads, params, wide=False, together=together)["a"]
        assert norm.dtype == torch.float32 and bool(norm.isfinite()) == finite


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nonfinite_gradients_have_a_nonfinite_norm(bad, wide, together):
    from fkd.loops._step.gradient import norms_of, total_norm

    grads = [torch.tensor([1.0, bad, 1e3])]
    norms = norms_of(grads, {"a": {"x": grads[0]}}, wide=wide, together=together)
    assert not torch.isfinite(total_norm(norms))


def test_a_rate_that_is_not_finite_is_refused_before_the_update():
    step, state = make(lr=lambda step: math.nan if step == 1 else 1.0)
    state, _ = step(state, data(0))
    before = {n: p.clone() for n, p in state.trainable["student"].items()}
    with pytest.raises(ValueError, match="lr gives nan at step 1"):
        step(state, data(1))
    assert same_bits(before, dict(state.trainable["student"]))
