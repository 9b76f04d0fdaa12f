"""Batch statistics over the examples of all ranks, as of the whole batch in one process."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from ._ranks import Ranks

PRESENT = "examples_present"
"""The buffer that says whether this rank has examples: `[]`, 1 or 0."""


def batch_norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """The modules whose output depends on the other examples of a batch while they train."""
    return {n: m for n, m in module.named_modules() if isinstance(m, _BatchNorm)}


def over_ranks(copied: nn.Module, ranks: Ranks) -> nn.Module:
    """A skeleton whose batch normalisations see the examples of all ranks.

    Means and variances of the ranks are gathered and merged, so that output, running statistics
    and gradient are those of the whole batch. The class of each such module becomes a subclass of
    its own, so that taps and `isinstance` see what they saw.
    """
    for module in batch_norms(copied).values():
        module.register_buffer(PRESENT, torch.ones(()), persistent=False)
        kind = type(module)
        fields: dict[str, Any] = {"forward": _forward, "alone": kind.forward, "ranks": ranks}
        module.__class__ = type(kind.__name__, (kind,), {**fields, "__module__": kind.__module__})
    return copied


def presence(module: nn.Module, present: Tensor) -> dict[str, Tensor]:
    """What is given to a skeleton beside its tensors, by name."""
    return {f"{name}.{PRESENT}".removeprefix("."): present for name in batch_norms(module)}


def _forward(self: Any, x: Tensor) -> Tensor:
    if not self.training and self.running_mean is not None:
        return self.alone(x)
    self._check_input_dim(x)
    mean, variance, count = _moments(self.ranks, x, getattr(self, PRESENT))
    if self.training and self.track_running_stats and self.running_mean is not None:
        _follow(self, mean, variance, count)
    shape = (1, -1) + (1,) * (x.ndim - 2)
    scale = torch.rsqrt(variance + self.eps)
    normal = (x.to(mean.dtype) - mean.view(shape)) * scale.view(shape)
    if self.affine:
        normal = normal * self.weight.view(shape) + self.bias.view(shape)
    return normal.to(x.dtype)


def _moments(ranks: Ranks, x: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and number of values of each channel, over all ranks: those of each rank,
    merged (Chan et al., 1983)."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    axes = [0, *range(2, x.ndim)]
    own_count = present.to(wide.dtype) * (x.numel() // x.shape[1])
    own_mean = wide.mean(axes)
    shape = (1, -1) + (1,) * (x.ndim - 2)
    own_squares = (wide - own_mean.view(shape)).square().mean(axes)
    counted = own_count.expand(1)
    every = ranks.stacked(torch.cat([own_mean, own_squares, counted]))
    counts = every[:, -1:].detach()
    means, squares = torch.where(counts > 0, every[:, :-1], 0.0).chunk(2, dim=1)
    count = counts.sum().clamp(min=1)
    share = counts / count
    mean = (share * means).sum(0)
    variance = (share * (squares + (means - mean).square())).sum(0)
    return mean, variance, count


@torch.no_grad()
def _follow(self: Any, mean: Tensor, variance: Tensor, count: Tensor) -> None:
    """The running statistics, as torch moves them."""
    rate = self.momentum
    if self.num_batches_tracked is not None:
        self.num_batches_tracked.add_(1)
        if rate is None:
            rate = 1.0 / self.num_batches_tracked.to(mean.dtype)
    unbiased = variance * (count / (count - 1).clamp(min=1))
    for running, now in ((self.running_mean, mean), (self.running_var, unbiased)):
        running.copy_(running + rate * (now.to(running.dtype) - running))
