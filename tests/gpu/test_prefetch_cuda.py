"""Copies on a stream of their own: right values, no waiting, memory that is not reused early."""

from __future__ import annotations

import pytest
import torch

from fkd.loops import fit, prefetch
from fkd.loops._data.batch import normalised
from fkd.loops._data.prefetch import CudaTransfer, to_device
from fkd.loops._run import loop as _fit
from tests.loops.training import batches, make

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else None
LONG, SHORT = int(2e9), int(2e7)  # cycles: about a second, and 10 ms


def many(count: int = 8, *, pinned: bool = False):
    made = [{"x": torch.full((1 << 20,), float(i)), "n": i} for i in range(count)]
    return [{**b, "x": b["x"].pin_memory()} for b in made] if pinned else made


@pytest.mark.parametrize("pinned", [True, False])
def test_a_slow_step_reads_its_own_batch(pinned):
    """Each batch is dropped by the host long before the device reads it."""
    sums = []
    for made in prefetch(many(pinned=pinned), "cuda"):
        assert made["x"].is_cuda and made["n"].is_cuda
        torch.cuda._sleep(SHORT)
        sums.append(torch.stack([made["x"].min(), made["x"].max(), made["n"].float()]))
        del made
    assert torch.stack(sums).tolist() == [[i, i, i] for i in range(8)]


def test_a_copy_does_not_wait_for_the_step_and_the_step_waits_for_the_copy():
    transfer = CudaTransfer(CUDA)
    copy = to_device(CUDA, transfer)
    copy(many(1)[0])  # memory, pinned and not, is there from now on
    torch.cuda.synchronize()
    torch.cuda._sleep(LONG)
    done = torch.cuda.Event()
    done.record()
    made = copy(many(3)[2])
    transfer.stream.synchronize()
    assert not done.query(), "the copy has waited for the kernel before it"
    assert made["x"].sum().item() == 2 * (1 << 20) and done.query()


def test_a_step_waits_for_a_slow_copy():
    transfer = CudaTransfer(CUDA)
    with torch.cuda.stream(transfer.stream):
        torch.cuda._sleep(SHORT)
    made = to_device(CUDA, transfer)(many(3)[2])
    assert made["x"].min().item() == 2.0


def test_what_is_on_the_device_already_is_left_there():
    x = torch.arange(4.0, device=CUDA)
    torch.cuda._sleep(SHORT)
    x.add_(1)
    made = to_device(CUDA)({"x": x, "y": torch.ones(2)})
    assert made["x"] is x and made["y"].is_cuda and x.tolist() == [1, 2, 3, 4]


def _run(copy=None, patch=None):
    if copy is not None:
        patch.setattr(_fit, "mover", copy)
    step, _ = make()
    state = step.init(seed=3, device=CUDA)
    *_, last = fit(step, state, batches(), epochs=2, log_every=1)
    return last.state.trainable


def test_fit_trains_as_with_plain_copies(monkeypatch):
    beside = _run()
    plain = _run(lambda device: lambda batch: normalised(batch, device), monkeypatch)
    for name, held in beside.items():
        for key, value in held.items():
            torch.testing.assert_close(value, plain[name][key], rtol=1e-6, atol=1e-7)
