"""Between two log points the host does not wait for the device."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fkd
from fkd.loops import fit

from ..training import batches, make

# What makes the host wait when the tensor is on a device: reading a value (item, float, bool,
# equal), and shapes that depend on values. A copy to the host shows as none of them on the CPU.
WAITING = {"_local_scalar_dense", "item", "equal", "nonzero", "masked_select", "unique_consecutive"}


PACKAGE = str(Path(fkd.__file__).parent)


class Waits(TorchDispatchMode):
    """Records where in the library a value is read, and lets everything run."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket._qualified_op_name.split("::")[1]
        if name in WAITING:
            stack = [f for f in traceback.extract_stack() if PACKAGE in f.filename]
            last = f"{Path(stack[-1].filename).name}:{stack[-1].name}" if stack else "outside"
            self.places.append(last)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}])
def test_steps_in_between_read_nothing(tmp_path, options):
    """On the CPU the optimizer looks at `finite` (it is there already); on a device, it does
    not: see `Updater.update`. Nothing else looks at any value, in step or loop."""
    step, state = make(**options)
    waits, counts = Waits(), {}
    events = fit(
        step, state, batches(), steps=12, log_every=6, log_dir=tmp_path, progress=False,
        tensorboard=False, checkpoint_dir=tmp_path, save_every=12,
    )  # fmt: skip
    for event in events:
        if event.kind == "log" and event.step == 6:
            break
    with waits:
        for event in events:  # steps 7 to 12, the log point, the checkpoint
            counts[event.kind] = list(waits.places)
            if event.kind == "log":
                break
    found = counts["log"]
    assert found.count("optimizer.py:update") == 6
    rest = [place for place in found if place != "optimizer.py:update"]
    assert rest == []


def test_the_counter_counts():
    waits = Waits()
    x = torch.ones(3)
    with waits:
        for read in (lambda: x.sum().item(), lambda: bool(x[0]), lambda: float(x[1])):
            read()
    assert waits.places == ["outside"] * 3
