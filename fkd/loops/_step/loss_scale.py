"""The factor on the loss of a step in float16, whose small gradients would otherwise be 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor

LossScale: TypeAlias = Mapping[str, Tensor]
"""`{"factor": [], "finite_steps": []}`: the factor, and for how many steps in a row all gradients
have been finite since it last changed."""

FIRST, LEAST, MOST = 2.0**16, 2.0**-14, 2.0**32
GROW_AFTER = 2000
"""Finite steps in a row after which the factor is doubled."""


def initial_scale(device: torch.device) -> dict[str, Tensor]:
    """The factor before the first step."""
    return {
        "factor": torch.tensor(FIRST, dtype=torch.float32, device=device),
        "finite_steps": torch.zeros((), dtype=torch.int32, device=device),
    }


def next_scale(scale: LossScale, finite: Tensor) -> dict[str, Tensor]:
    """The factor for the next step: half after one that is not finite, twice after many that are.

    All are powers of two, so that scaling rounds nothing.

    Reference:
      Micikevicius et al., Mixed Precision Training, arXiv:1710.03740.
    """
    factor, done = scale["factor"], scale["finite_steps"] + 1
    grows = finite & (done >= GROW_AFTER)
    moved = torch.where(finite, torch.where(grows, factor * 2, factor), factor / 2)
    done = torch.where(finite & ~grows, done, torch.zeros_like(done))
    return {"factor": moved.clamp(LEAST, MOST), "finite_steps": done}
