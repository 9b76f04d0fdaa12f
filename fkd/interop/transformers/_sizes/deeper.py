"""Blocks that begin as the identity."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from .alike import is_norm

_ENDS = re.compile(
    r"(^|\.)(o|o_proj|out_proj|down_proj|c_proj|fc2|lin2|linear2|layer_2|w2|wo|Wo|out_lin"
    r"|dense_4h_to_h|proj_out|fc_out|(attention\.)?output\.dense|[^.]*att[^.]*\.dense)"
    r"(\.weight|\.bias|_bias)?$"
)
"""What writes into the residual stream, at the ends of a block's branches."""


def ends_of(block: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters at the ends of the branches of a block, by name."""
    return {n: p for n, p in block.named_parameters() if _ENDS.search(n)}


def norms_come_after(block: nn.Module) -> bool:
    """Whether the norms of a block seem to come after its branches."""
    modules = dict(block.named_modules())
    beside = {n.rpartition(".")[0].rpartition(".")[0] for n in ends_of(block)} - {""}
    return (
        getattr(block, "norm_first", True) is False
        or type(block).__module__.endswith("distilbert")
        or any(n.rpartition(".")[0] in beside and is_norm(m) for n, m in modules.items())
    )


@torch.no_grad()
def add_nothing(block: nn.Module) -> None:
    """Make a block whose norms come before its branches the identity."""
    for p in ends_of(block).values():
        p.zero_()


@torch.no_grad()
def add_nothing_after(block: nn.Module, before: nn.Module) -> bool:
    """The same for a block whose norms come after its branches.

    The block before then ends in a norm that scales nothing; the norms of the new block norm
    again what is normed, and its last one scales as that did.

    Returns:
      Whether both have such norms.
    """
    ours, theirs = _path(block), _path(before)
    if not ours or not theirs:
        return False
    add_nothing(block)
    last, previous = ours[-1], theirs[-1]
    last.load_state_dict(previous.state_dict())
    for norm in (*ours[:-1], previous):
        _scale_nothing(norm)
    return True


def _path(block: nn.Module) -> list[Any]:
    """The norms of a block over all units, in their order."""
    norms: list[Any] = [m for m in block.modules() if is_norm(m)]
    sizes = [m.weight.numel() for m in norms if isinstance(getattr(m, "weight", None), Tensor)]
    return [m for m in norms if getattr(m, "weight", None) is not None
            and m.weight.numel() == max(sizes)]  # fmt: skip


def _scale_nothing(norm: Any) -> None:
    norm.weight.fill_(0.0 if is_offset(norm) else 1.0)
    if getattr(norm, "bias", None) is not None:
        norm.bias.zero_()


@torch.no_grad()
def is_offset(norm: Any) -> bool:
    """Whether a norm scales by 1 + weight."""
    before, bias = norm.weight.clone(), getattr(norm, "bias", None)
    norm.weight.zero_()
    x = torch.linspace(-1, 1, before.numel(), dtype=before.dtype, device=before.device)
    given = norm(x[None, None])
    norm.weight.copy_(before)
    return bool((given - (0 if bias is None else bias)).abs().max() > 1e-3)


@torch.no_grad()
def scale(norm: Any, by: Tensor) -> None:
    """Multiply what a norm gives."""
    by = by.to(norm.weight)
    one = 1.0 if is_offset(norm) else 0.0
    norm.weight.copy_((norm.weight + one) * by - one)
    if getattr(norm, "bias", None) is not None:
        norm.bias.mul_(by)


@torch.no_grad()
def add_nothing_in_a_row(layer: nn.Module, name: str) -> None:
    """Make a new layer of a `Sequential` the identity.

    Raises:
      ValueError: it cannot be.
    """
    if not any(True for _ in layer.parameters()):
        if not isinstance(layer, nn.ReLU | nn.ReLU6 | nn.Hardtanh | nn.Identity | nn.Dropout):
            raise ValueError(
                f"grow: layer {name} ({layer}) does not give what it gave when it is applied "
                "twice; a new layer is followed by a ReLU, or by nothing."
            )
        return
    if isinstance(layer, nn.Linear) and layer.in_features == layer.out_features:
        nn.init.eye_(layer.weight)
    elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and _keeps_places(layer):
        nn.init.dirac_(layer.weight)
    else:
        raise ValueError(
            f"grow: layer {name} ({layer}) cannot begin as the identity; a Linear or a "
            "convolution with as many outputs as inputs, of stride 1 and padding to the same size, "
            "is expected."
        )
    if layer.bias is not None:
        layer.bias.zero_()


def _keeps_places(conv: Any) -> bool:
    same = all(
        2 * p == d * (k - 1)
        for p, d, k in zip(conv.padding, conv.dilation, conv.kernel_size, strict=True)
    ) if not isinstance(conv.padding, str) else conv.padding == "same"  # fmt: skip
    odd = all(k % 2 for k in conv.kernel_size)
    return (
        conv.in_channels == conv.out_channels
        and set(conv.stride) == {1}
        and conv.groups == 1
        and same
        and odd
    )
