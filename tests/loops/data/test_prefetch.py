"""Copies beside the computation: what is copied when, and that nothing else changes for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fkd.loops import LoopError, fit, prefetch
from fkd.loops._data.prefetch import mover, to_device
from fkd.loops._run import loop as _fit

from ..training import LOADERS, batches, make, newest, same_end, train

CPU = torch.device("cpu")


class Recorded:
    """The operations of a copy, in the order in which they are called."""

    def __init__(self, log: list[Any]) -> None:
        self.log = log

    def pinned(self, x: Tensor) -> Tensor:
        self.log.append("pin")
        return x.clone()

    def copied(self, copy: Callable[[], Any]) -> Any:
        self.log.append("copy")
        return copy()

    def handed_over(self, tensors: list[Tensor]) -> None:
        self.log.append(f"hand over {len(tensors)}")


def drawn(log: list[Any], count: int = 3) -> Iterator[Any]:
    for i in range(count):
        log.append(f"draw {i}")
        yield {"x": torch.full((2,), float(i)), "y": [torch.tensor(i)], "text": "left out"}


@pytest.mark.parametrize("streams", [True, False])
def test_a_batch_is_made_when_it_is_asked_for(streams):
    log: list[Any] = []
    made = prefetch(drawn(log), "cpu", transfer=Recorded(log) if streams else None)
    assert log == []
    for i, found in enumerate(made):
        log.append(f"step {i}")
        assert found["x"].tolist() == [i, i] and found["y"][0] == i and "text" not in found
    copied = ["pin", "pin", "copy", "hand over 2"] if streams else []
    assert log == [e for i in range(3) for e in (f"draw {i}", *copied, f"step {i}")]


def test_what_a_device_has_made_is_not_copied_beside_it():
    log: list[Any] = []
    copy = to_device(torch.device("meta"), Recorded(log))
    copy({"x": torch.ones(2, device="meta"), "y": torch.ones(2)})
    assert log == []
    copy({"y": torch.ones(2), "n": 3})
    assert log == ["pin", "pin", "copy", "hand over 2"]


def test_an_error_comes_with_its_own_batch():
    def fails() -> Iterator[Any]:
        yield from drawn([], 2)
        raise OSError("no third")

    made = prefetch(fails(), CPU)
    assert [next(made)["x"][0].item() for _ in range(2)] == [0.0, 1.0]
    with pytest.raises(OSError, match="no third"):
        next(made)


# -- in fit ---------------------------------------------------------------------------------


@pytest.fixture
def beside(monkeypatch) -> list[Any]:
    """Lets `fit` copy on the CPU as it does on CUDA."""
    log: list[Any] = []
    monkeypatch.setattr(_fit, "mover", lambda device: mover(device, Recorded(log)))
    return log


@pytest.mark.parametrize("name", LOADERS)
def test_a_run_is_the_same_bit_for_bit_and_is_resumed_the_same(name, tmp_path, request):
    """Six steps and a new process's four more, as ten in one go without any of it."""
    train(tmp_path / "plain", LOADERS[name]())
    log = request.getfixturevalue("beside")
    train(tmp_path / "cut", LOADERS[name](), epochs=None, steps=7)
    assert newest(tmp_path / "cut").name == "step-00000007"
    train(tmp_path / "cut", LOADERS[name]())
    assert same_end(tmp_path / "plain", tmp_path / "cut")
    assert log.count("copy") == 10 and log.count("pin") == 20


def test_nothing_is_drawn_beyond_the_last_step(beside):
    def ends(seed: int) -> Iterator[Any]:
        yield from batches()[:4]
        raise OSError("drawn beyond the end")

    assert train(None, ends, epochs=None, steps=4)[-1].step == 4
    with pytest.raises(LoopError, match=r"batch 4 of epoch 0 \(step 4\): the loader failed"):
        train(None, ends, epochs=None, steps=5)


def test_a_batch_is_used_before_the_next_is_drawn(beside):
    done: list[int] = []

    def watched(seed: int) -> Iterator[Any]:
        for i, found in enumerate(batches()):
            assert len(done) == i
            yield found

    step, state = make()
    for event in fit(step, state, watched, epochs=1, log_every=1):
        if event.kind == "log":
            done.append(event.step)
    assert done == [1, 2, 3, 4, 5]


def test_tokens_are_counted_on_the_host(monkeypatch):
    """Where the copy on the device would have to be waited for."""
    counted: list[Any] = []
    monkeypatch.setattr(_fit, "mover", lambda device: lambda b: {**b, "mark": torch.ones(1)})
    monkeypatch.setattr(_fit, "tokens_in", lambda b: counted.append(sorted(b)) or 0)
    train(None, epochs=1)
    assert counted == [["x", "y"]] * 5
