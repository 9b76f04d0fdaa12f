"""One step of fkd and one of a hand-written loop, as the benchmarks run them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from _measure import Run
from torch import Tensor, nn

import fkd

Loss = Callable[[nn.Module, nn.Module], Tensor]
"""`(student, teacher) -> loss` of a peer, which has its batch."""


def adamw(params: Any) -> torch.optim.Optimizer:
    """The optimizer of every variant, with its fused kernel."""
    return torch.optim.AdamW(params, lr=1e-4, fused=True)


def fkd_step(
    objective: fkd.Objective, *batches: Mapping[str, Any], compile: Any = True, bf16: bool = False
) -> Run:
    """A step of fkd on each of the batches (often one), whose state is kept from call to call."""
    precision = "bf16" if bf16 else "fp32"
    step = fkd.loops.train_step(objective, adamw, compile=compile, precision=precision)
    state = step.init(0)

    def run() -> Any:
        nonlocal state
        for data in batches:
            state, _ = step(state, data)
        return state

    return run


def peer_step(loss: Loss, pair: tuple[nn.Module, nn.Module], *, compiled: bool = False) -> Run:
    """A step of the loop that people write; trains a copy of the student.

    Args:
      loss: of student and teacher.
      pair: student and teacher.
      compiled: whether each model is compiled by itself.
    """
    small, big = copy.deepcopy(pair[0]).train(), pair[1]
    optimizer = adamw(small.parameters())
    if compiled:
        small, big = torch.compile(small, dynamic=False), torch.compile(big, dynamic=False)

    def run() -> Any:
        value = loss(small, big)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        return value

    return run


def fkd_gradients(
    objective: fkd.Objective, data: Mapping[str, Any], *, bf16: bool = False
) -> dict[str, Tensor]:
    """`{"loss": ..., parameter: gradient}` of the student, computed eagerly."""
    parts = objective.init()
    params = {n: p.requires_grad_() for n, p in parts.trainable["student"].items()}
    autocast = torch.bfloat16 if bf16 else None
    loss, _ = objective(parts._replace(trainable={"student": params}), data, autocast=autocast)
    return _named(loss, params)


def peer_gradients(loss: Loss, pair: tuple[nn.Module, nn.Module]) -> dict[str, Tensor]:
    """The same of a peer, by a copy of the student."""
    small = copy.deepcopy(pair[0]).train()
    return _named(loss(small, pair[1]), dict(small.named_parameters()))


def _named(loss: Tensor, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
    given = {n: g for n, g in zip(params, found, strict=True) if g is not None}
    return {"loss": loss.detach(), **given}
