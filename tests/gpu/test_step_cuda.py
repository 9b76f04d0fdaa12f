"""A step on a CUDA device: graphs that are replayed, and a host that never waits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.loops.training import batches, make

pytestmark = [pytest.mark.gpu, pytest.mark.compile]
CAPTURED = {"mode": "reduce-overhead"}


def on_cuda(batch: Any) -> Any:
    return {name: x.to("cuda") for name, x in batch.items()}


def run(steps: int = 6, **options: Any) -> tuple[Any, list[dict[str, torch.Tensor]]]:
    """The state and all metrics, read at the very end, when later steps have overwritten what
    they could. Schedules, a stateful loss, buffers, EMA, dropout and clipping are in `make`."""
    step, _ = make(**options)
    state, kept = step.init(seed=3, device="cuda"), []
    batch = on_cuda(batches()[0])
    for _ in range(steps):
        state, metrics = step(state, batch)
        kept.append(metrics)
    return state, kept


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_captured_graphs_give_what_others_give(accumulate, precision):
    torch.use_deterministic_algorithms(False)  # some captured kernels have no such variant
    options = {"accumulate": accumulate, "precision": precision}
    expected = run(compile=True, **options)
    found = run(compile=CAPTURED, **options)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0].trainable, expected[0].trainable, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found[0].frozen, expected[0].frozen, rtol=1e-3, atol=1e-4)


def test_the_schedule_moves_under_captured_graphs():
    _, kept = run(compile=CAPTURED)
    weights = [float(m["weight/kd"]) for m in kept]
    assert weights == sorted(weights, reverse=True) and weights[0] > weights[-1]


@pytest.mark.parametrize("compile", [False, True, CAPTURED], ids=["eager", "compiled", "captured"])
def test_the_host_never_waits_for_the_device(compile):
    step, _ = make(compile=compile)
    state = step.init(seed=3, device="cuda")
    batch = on_cuda(batches()[0])
    for _ in range(4):  # compiles, warms up, captures
        state, _ = step(state, batch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            state, _ = step(state, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert state.step == 7 and state.skipped == 0
