"""The blocks of a graph as operations that a compiler does not look into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

from .region import Region, Spec

_LIBRARY = Library("fkd", "FRAGMENT")
_REGIONS: dict[str, Region] = {}
"""By the hash of what they compute, so that nothing depends on when one was added."""

_FORWARD = "(str key, Tensor[] tensors) -> Tensor[]"
for _name, _tags in (
    ("block", ()),
    ("random_block", (torch.Tag.nondeterministic_seeded,)),
    ("block_backward", ()),
):
    _LIBRARY.define(_name + _FORWARD, tags=_tags)


def add(region: Region) -> Region:
    """Let operations find a region; the one that is there, if it is."""
    return _REGIONS.setdefault(region.key, region)


def forward(key: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    """What a block gives, and what its backward graph needs."""
    return _REGIONS[key].forward(tensors)


def backward(key: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of the inputs that have one."""
    half = _REGIONS[key].backward
    assert half is not None
    return half(tensors)


def _like_forward(key: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    return _REGIONS[key].forward.like()


def _like_backward(key: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    half = _REGIONS[key].backward
    assert half is not None
    return half.like()


def _remember(ctx: Any, inputs: tuple[str, list[Tensor]], output: list[Tensor]) -> None:
    key, tensors = inputs
    region = _REGIONS[key]
    ctx.key, ctx.inputs = key, len(tensors)
    returned = [i for kind, i in region.sources if kind == "output"]
    read = [i for kind, i in region.sources if kind == "input"]
    ctx.outputs = {i: n for n, i in enumerate(returned)}
    ctx.tensors = {i: len(returned) + n for n, i in enumerate(read)}
    ctx.save_for_backward(*(output[i] for i in returned), *(tensors[i] for i in read))
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grads: list[Tensor | None]) -> tuple[None, list[Tensor | None]]:
    region = _REGIONS[ctx.key]
    half = region.backward
    assert half is not None
    saved = ctx.saved_tensors
    tensors: list[Tensor] = []
    for (kind, i), spec in zip(region.sources, half.inputs, strict=True):
        if kind == "output":
            tensors.append(saved[ctx.outputs[i]])
        elif kind == "input":
            tensors.append(saved[ctx.tensors[i]])
        else:
            tensors.append(_tangent(grads[region.tangents[i]], spec))
    computed = iter(torch.ops.fkd.block_backward(ctx.key, tensors))
    wanted = set(region.differentiated)
    return None, [next(computed) if i in wanted else None for i in range(ctx.inputs)]


def _tangent(grad: Tensor | None, spec: Spec) -> Tensor:
    """A gradient laid out as the backward graph expects it."""
    if grad is None:
        return torch.empty_strided(
            spec.shape, spec.stride, dtype=spec.dtype, device=spec.device
        ).zero_()
    if grad.stride() == spec.stride:
        return grad
    like = torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device=spec.device)
    return like.copy_(grad)


def _no_second_derivative(ctx: Any, grads: list[Tensor | None]) -> None:
    raise RuntimeError(
        "A second derivative goes through a block of a model that is compiled once for all its "
        'equals, which has none. Leave "blocks" out of train_step(..., compile=...).'
    )


for _name, _fn, _fake in (
    ("block", forward, _like_forward),
    ("random_block", forward, _like_forward),
    ("block_backward", backward, _like_backward),
):
    _LIBRARY.impl(_name, _fn, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fkd::{_name}", _fake, lib=_LIBRARY)
for _name in ("block", "random_block"):
    torch.library.register_autograd(
        f"fkd::{_name}", _differentiate, setup_context=_remember, lib=_LIBRARY
    )
torch.library.register_autograd("fkd::block_backward", _no_second_derivative, lib=_LIBRARY)
