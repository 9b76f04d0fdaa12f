"""The most probable classes of logits, and classes drawn from them, in few passes over them.

A vocabulary is looked at in groups of `GROUP` classes: their maxima say in which groups the k
greatest logits are, and their sums in which one a draw falls, so that only a few groups are looked
at class by class. Both are exact: the k greatest logits are in the k groups with the greatest
maxima.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

GROUP = 16
"""How many classes are a group. Class c is in group c modulo their number, so that a maximum or a
sum over groups is one over long rows."""
_BLOCK = 1 << 19
"""So many logits are looked at together on a CPU: 2 MB."""
_LOG2E = math.log2(math.e)


def by_blocks(
    fn: Callable[..., tuple[Tensor, ...]], z: Tensor, *beside: Tensor
) -> tuple[Tensor, ...]:
    """What a function of `[positions, vocab]` logits gives, for `[*batch, vocab]`: on a CPU a few
    positions at a time, so that they stay in its cache."""
    flat = [x.reshape(-1, x.shape[-1]) for x in (z, *beside)]
    on_host = z.device.type == "cpu" and not torch.compiler.is_compiling()
    size = max(1, _BLOCK // z.shape[-1]) if on_host and len(flat[0]) else max(1, len(flat[0]))
    parts = [fn(*block) for block in zip(*(x.split(size) for x in flat), strict=True)]
    whole = [torch.cat(each) for each in zip(*parts, strict=True)]
    return tuple(x.reshape(*z.shape[:-1], *x.shape[1:]) for x in whole)


def softened(z: Tensor, temperature: float) -> Tensor:
    """Logits in at least float32, divided by the temperature."""
    z = z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
    return z if temperature == 1 else z / temperature


def greatest(z: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of `[positions, vocab]` logits at a temperature: the k most probable classes and log p of
    each, `[positions, k]`, and that of all others together, `[positions]`."""
    z = softened(z, temperature)
    top, ids = _largest(z, k)
    # Powers of two, which are cheaper; whole ones are taken off, so that nothing is rounded there.
    shift = -(_finite(top[:, :1].detach()) * _LOG2E).round()
    # Summed as they are: 1 minus the listed ones would leave nothing of a small number.
    exponents = torch.add(shift, z, alpha=_LOG2E).scatter_(-1, ids, -torch.inf)
    others = exponents.exp2_().sum(-1)
    listed = torch.add(shift, top, alpha=_LOG2E)
    whole = (others + listed.exp2().sum(-1)).log2()
    return ids, (listed - whole[:, None]) / _LOG2E, (others.log2() - whole) / _LOG2E


def _largest(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest logits and their classes."""
    groups = z.shape[-1] // GROUP
    if groups < 2 * k:
        return z.topk(k, dim=-1)
    grid, beyond = _grid(z)
    chosen = grid.detach().amax(1).topk(k, dim=-1, sorted=False).indices
    near = torch.cat([_members(grid, chosen).flatten(1), beyond], -1)
    top, at = near.topk(k, dim=-1)
    return top, _classes(chosen, z.shape[-1]).gather(-1, at)


def drawn(z: Tensor, points: Tensor, temperature: float, proposal: float) -> tuple[Tensor, ...]:
    """Of `[positions, vocab]` logits at a temperature: the classes in which points from 0 up to 1
    fall, `[positions, n]`, the entropy and the most probable class, `[positions]`; with a proposal,
    log p and log r of the classes drawn, too."""
    z = softened(z, temperature)
    p = z.softmax(-1)
    most, top = _first(z)
    log_top = p.gather(-1, top).log()  # the logarithm of the sum over all is most - log_top
    # Of an impossible class 0 * -inf, which is 0 here.
    relative = (z - _finite(most)).clamp_min_(torch.finfo(z.dtype).min)
    entropy = (-relative.mul_(p).sum(-1, keepdim=True) - log_top).squeeze(-1)
    if proposal == 1:
        return _fall(p, points), entropy, top.squeeze(-1)
    log_r = torch.log_softmax(proposal * z, dim=-1)
    ids = _fall(log_r.exp(), points)
    log_p = z.gather(-1, ids) - most + log_top
    return ids, entropy, top.squeeze(-1), log_p, log_r.gather(-1, ids)


def _first(z: Tensor) -> tuple[Tensor, Tensor]:
    """The largest logit and its class, `[positions, 1]` each."""
    groups = z.shape[-1] // GROUP
    if groups < 2:
        return z.max(-1, keepdim=True)
    grid, beyond = _grid(z)
    chosen = grid.detach().amax(1).argmax(-1, keepdim=True)
    most, at = torch.cat([_members(grid, chosen).flatten(1), beyond], -1).max(-1, keepdim=True)
    return most, _classes(chosen, z.shape[-1]).gather(-1, at)


def _fall(mass: Tensor, points: Tensor) -> Tensor:
    """The classes in which points fall, where each has a part as long as its mass: first the group,
    and then the class in it.

    Never one without a mass, whatever is rounded: a point is below the sum that it falls into.
    """
    groups, below = mass.shape[-1] // GROUP, 1 - torch.finfo(mass.dtype).eps
    grid, beyond = _grid(mass)
    # A class beyond the groups is one of its own.
    ends = torch.cat([grid.sum(1), beyond], -1).cumsum(-1)
    total = ends[:, -1:]
    places = torch.minimum(points * total, total * below)
    fallen = torch.searchsorted(ends, places, right=True)
    if not groups:
        return fallen
    start = torch.where(fallen > 0, ends.gather(-1, (fallen - 1).clamp_min(0)), 0.0)
    chosen = fallen.clamp_max(groups - 1)
    inside = _members(grid, chosen).cumsum(1)
    left = torch.minimum(places - start, inside[:, -1] * below)
    member = (inside <= left[:, None]).sum(1).clamp_max(GROUP - 1)
    return torch.where(fallen < groups, chosen + groups * member, fallen + groups * (GROUP - 1))


def _grid(z: Tensor) -> tuple[Tensor, Tensor]:
    """`[positions, GROUP, groups]`, the members of each group, and the classes beyond them."""
    groups = z.shape[-1] // GROUP
    whole = groups * GROUP
    return z[:, :whole].reshape(len(z), GROUP, groups), z[:, whole:]


def _members(grid: Tensor, chosen: Tensor) -> Tensor:
    """`[positions, GROUP, chosen]`, the members of chosen groups."""
    return grid.gather(2, chosen[:, None].expand(-1, GROUP, -1))


def _classes(chosen: Tensor, vocab: int) -> Tensor:
    """The classes of the members of chosen groups, and those beyond the groups."""
    groups, device = vocab // GROUP, chosen.device
    first = groups * torch.arange(GROUP, device=device)
    beyond = torch.arange(groups * GROUP, vocab, device=device).expand(len(chosen), -1)
    return torch.cat([(chosen[:, None] + first[:, None]).flatten(1), beyond], -1)


def _finite(most: Tensor) -> Tensor:
    return most.nan_to_num(0.0, neginf=0.0)
