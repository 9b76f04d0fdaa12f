"""Matrix products that `torch.autocast` leaves as precise as their operands."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def autocasts(x: Tensor) -> bool:
    """Whether `torch.autocast` is on for the device of `x`."""
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def shielded(x: Tensor) -> Tensor:
    """`x`, in float64 inside `torch.autocast`, which rounds all narrower operands to half.

    Leaving autocast for the forward pass is not enough: the backward pass of a product is a
    product again, and a gradient that is taken inside autocast would be rounded.
    """
    return x.double() if autocasts(x) else x


def product(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b`, in the wider of the two types, also inside `torch.autocast`."""
    dtype = torch.promote_types(a.dtype, b.dtype)
    return (shielded(a.to(dtype)) @ shielded(b.to(dtype))).to(dtype)


def outside_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context without `torch.autocast` on the device of `x`, for code without a backward pass."""
    return torch.autocast(x.device.type, enabled=False) if autocasts(x) else nullcontext()
