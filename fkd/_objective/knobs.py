"""What moves during a run, as 0-d tensors that a compiled step takes as arguments."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .models import Model
from .terms import Moving, moves, value_at


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
