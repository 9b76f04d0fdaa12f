"""What a model costs: size, operations, time, memory. The outer shell: it reads clocks."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fkd._base.trees import map_tensors
from fkd._base.types import TensorBatch
from fkd._objective.apply import call_arguments
from fkd._objective.models import Model, evaluating

from .._data.batch import examples_in
from .record import Cost

WARM_UP = 2
METHOD = (
    "eval mode, no gradients, not compiled, one process; {repeats} passes after "
    f"{WARM_UP} to warm up, {{threads}} on {{device}}"
)


def method(repeats: int, device: torch.device) -> str:
    """How times are measured, in words."""
    if device.type == "cuda":
        where, threads = torch.cuda.get_device_name(device), "synchronised"
    else:
        where, threads = str(device), _threads(torch.get_num_threads())
    return METHOD.format(repeats=repeats, threads=threads, device=where)


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def cost(model: Model, batch: TensorBatch, *, repeats: int, device: torch.device) -> Cost:
    """The cost of one model on batches like this one."""
    module = model.module
    assert module is not None
    examples = max(examples_in(batch), 1)
    one = first_example(batch, examples)
    with evaluating(module):
        whole, single = _forward(model, batch), _forward(model, one)
        alone = seconds(single, repeats, device)
        many = seconds(whole, max(repeats // 4, 3), device)
        return Cost(
            parameters=sum(p.numel() for p in module.parameters()),
            megabytes=_bytes(module) / 1e6,
            gflops=_operations(single) / 1e9,
            latency_ms=1e3 * float(np.median(alone)),
            latency_p95_ms=1e3 * float(np.percentile(alone, 95)),
            throughput=examples / float(np.median(many)),
            peak_megabytes=_peak(whole, device) / 1e6,
        )


def first_example(batch: TensorBatch, examples: int) -> TensorBatch:
    """The batch with the first example alone."""
    return map_tensors(lambda x: x[:1] if x.ndim and len(x) == examples else x, batch)


def _forward(model: Model, batch: TensorBatch) -> Callable[[], object]:
    module = model.module
    assert module is not None
    args, kwargs = call_arguments(model, batch)

    def forward() -> object:
        with torch.no_grad():
            return module(*args, **kwargs)

    return forward


def seconds(run: Callable[[], object], repeats: int, device: torch.device) -> list[float]:
    """The time of every pass."""
    times: list[float] = []
    for i in range(WARM_UP + repeats):
        _wait(device)
        began = time.perf_counter()
        run()
        _wait(device)
        if i >= WARM_UP:
            times.append(time.perf_counter() - began)
    return times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _bytes(module: nn.Module) -> int:
    tensors = [*module.parameters(), *module.buffers()]
    return sum(x.numel() * x.element_size() for x in tensors)


def _operations(run: Callable[[], object]) -> int:
    counter = FlopCounterMode(display=False)
    with counter:
        run()
    return counter.get_total_flops()


def _peak(run: Callable[[], object], device: torch.device) -> int:
    """The most memory that a pass holds above what was held before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    gc.collect()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _quiet(), torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run()
    recorded: Any = profile.profiler  # torch does not say of what type
    allocated = peak = 0
    for event in recorded.kineto_results.events():
        if event.name() == "[memory]":
            allocated += event.nbytes()
            peak = max(peak, allocated)
    return peak


@contextmanager
def _quiet() -> Generator[None]:
    """Without the lines ("USDT: ... profiler_start") that torch's profiler writes to the terminal.

    It reads this variable when it is used for the first time in a process.
    """
    name = "KINETO_LOG_LEVEL"
    before = os.environ.get(name)
    os.environ.setdefault(name, "99")  # these lines have the severest level
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
