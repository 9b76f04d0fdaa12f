"""What moves during a run, as 0-d tensors that a compiled step takes as arguments."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .models import Model
from .terms import Moving, moves, value_at

HOTTEST = 250.0
"""The highest temperature that a compiled step can be told."""


def decay_knobs(models: Mapping[str, Model]) -> dict[str, Moving]:
    """The decays of EMA models that move: `"teacher/decay"`."""
    # Anything may be given as a model: what is none is said later, by `problems`.
    decays = {n: m.decay for n, m in models.items() if getattr(m, "kind", None) == "ema"}
    return {f"{name}/decay": decay for name, decay in decays.items() if moves(decay)}


def knob_values(
    knobs: Mapping[str, Moving], step: int, device: torch.device | str | None = None
) -> dict[str, Tensor]:
    """Knobs at a step, as 0-d tensors on `device`; numbers in float32.

    The numbers travel in one copy that the host does not wait for.
    """
    now = {name: value_at(knob, step) for name, knob in knobs.items()}
    for name, value in now.items():
        _expect_cool(name, value, step)
    values = {name: value.detach() for name, value in now.items() if isinstance(value, Tensor)}
    numbers = {name: value for name, value in now.items() if not isinstance(value, Tensor)}
    # Not towards the host, which would read the copy before it is there.
    ahead = device is not None and torch.device(device).type == "cuda"
    if numbers:
        vector = torch.tensor(list(numbers.values()), dtype=torch.float32)
        vector = vector.pin_memory() if ahead else vector
        vector = vector if device is None else vector.to(device, non_blocking=ahead)
        values.update(zip(numbers, vector.unbind(), strict=True))
    if device is None:
        return values
    return {name: value.to(device, non_blocking=ahead) for name, value in values.items()}


def _expect_cool(name: str, value: float | Tensor, step: int) -> None:
    """Refuse a temperature that is too high for a loss which cannot read it."""
    if not name.endswith("/temperature") or (isinstance(value, Tensor) and _unread(value)):
        return
    if float(value) > HOTTEST:
        raise ValueError(
            f"{name} is {float(value):g} at step {step}; at most {HOTTEST:g} is expected of a "
            "temperature that moves: in float32, T^2 times a divergence is what rounding has left "
            "of it beyond. kl takes a higher one as a number, temperature=300.0; as T grows, it "
            "becomes half of logit_mse(..., center=True)."
        )


def _unread(value: Tensor) -> bool:
    """Whether reading a tensor would wait for a device, or it has more than one number."""
    return value.ndim > 0 or value.device.type != "cpu" or torch.compiler.is_compiling()
