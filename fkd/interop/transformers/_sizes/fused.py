"""Parameters that hold several projections in one, as their parts and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._layers import bare
from .heads import attention_of, heads_of

_IN_A_ROW = re.compile(
    r"(^|\.)(qkv_proj|c_attn|[Ww]qkv|qkv|in_proj|in_proj_weight|in_proj_bias)(\.|$)"
)
_BY_HEAD = re.compile(r"(^|\.)query_key_value(\.|$)")
_GATED = re.compile(r"(^|\.)(gate_up_proj|Wi)(\.|$)")
_FOUR_PATCHES = re.compile(r"(^|\.)downsample\.(reduction|norm)\.")
_OTHERWISE = ("codegen", "gpt_oss", "gptoss")
"""Families that lay out their fused projections in ways of their own."""


class Fused(NamedTuple):
    """How a tensor is made of parts along an axis: `order[i]` is the place, in the parts one after
    the other, of its i-th entry."""

    axis: int
    sizes: tuple[int, ...]
    labels: str
    order: Tensor | None = None


def fused_in(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Fused]:
    """The tensors of a model that hold several projections, by bare name."""
    heads = heads_of(model)
    modules = {bare(model, name): module for name, module in model.named_modules()}
    known = getattr(getattr(model, "config", None), "model_type", "") not in _OTHERWISE
    fused: dict[str, Fused] = {}
    for name, x in state.items():
        owner = modules.get(name.rpartition(".")[0])
        place = attention_of(name)
        attention = None if place is None else heads(place[0])
        axis = x.ndim - 1 if type(owner).__name__ == "Conv1D" else 0
        if _FOUR_PATCHES.search(name) and not x.shape[-1] % 4:
            fused[name] = Fused(x.ndim - 1, (x.shape[-1] // 4,) * 4, "0123")
        elif known and _GATED.search(name):
            axis = _gated_axis(x, getattr(model, "config", None)) if x.ndim == 3 else axis
            if not x.shape[axis] % 2:
                fused[name] = Fused(axis, (x.shape[axis] // 2,) * 2, "gu")
        elif known and attention is not None and not isinstance(owner, nn.Embedding):
            queries, size, _ = attention
            keys = (x.shape[axis] - queries * size) // 2
            if keys <= 0 or x.shape[axis] != queries * size + 2 * keys or keys % size:
                continue
            sizes = (queries * size, keys, keys)
            if _BY_HEAD.search(name):
                order = _by_head(queries, keys // size, size)
                fused[name] = Fused(axis, sizes, "qkv", order)
            elif _IN_A_ROW.search(name):
                fused[name] = Fused(axis, sizes, "qkv")
    return fused


def _gated_axis(x: Tensor, config: Any) -> int:
    """Of the gates of all experts: the axis that writes is the one that is not the hidden size."""
    hidden = getattr(config, "hidden_size", 0)
    return 1 if x.shape[2] == hidden else 2


def _by_head(queries: int, keys: int, size: int) -> Tensor:
    """For each key head its queries, its key and its value."""
    each = queries // keys
    q = torch.arange(queries * size).reshape(keys, each * size)
    k = torch.arange(keys * size).reshape(keys, size) + queries * size
    return torch.cat([q, k, k + keys * size], 1).flatten()


def parted(state: Mapping[str, Tensor], fused: Mapping[str, Fused]) -> dict[str, Tensor]:
    """A state in which every part has a name of its own: `qkv_proj.weight::q`."""
    parts: dict[str, Tensor] = {}
    for name, x in state.items():
        if name not in fused:
            parts[name] = x
            continue
        axis, sizes, labels, order = fused[name]
        if order is not None:
            x = x.index_select(axis, order.argsort().to(x.device))
        for label, part in zip(labels, x.split(sizes, axis), strict=True):
            parts[f"{name}::{label}"] = part
    return parts


def joined(parts: Mapping[str, Tensor], fused: Mapping[str, Fused]) -> dict[str, Tensor]:
    """The state of these parts."""
    state = {name: x for name, x in parts.items() if "::" not in name}
    for name, (axis, _, labels, order) in fused.items():
        every = [parts[part] for part in (f"{name}::{label}" for label in labels) if part in parts]
        if every:
            x = torch.cat(every, axis)
            state[name] = x if order is None else x.index_select(axis, order.to(x.device))
    return state
