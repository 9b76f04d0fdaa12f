"""The attention function of captured layers, registered with transformers as `fkd_capture`."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._watch import Reached, Seen, Watch

NAME = "fkd_capture"

Key = tuple[str, int, str | None]
Store = dict[Any, Any]


@dataclass(frozen=True, eq=False)
class Tag:
    """What an attention module is to capture.

    Attributes:
      wanted: kind -> key in the store, by the number of the call in this forward pass. A module
        that runs once has the one entry None.
      returns: the map is also returned, for transformers' own collection of maps.
      counter: where the store counts the calls of modules that share their weights.
      store: what was seen; cleared before every forward pass.
      base: the attention function that the module would use without fkd.
      eager: the one of the model's own file that computes the map.
    """

    wanted: Mapping[int | None, Mapping[str, tuple[Key, ...]]]
    returns: bool
    counter: str
    store: Store
    base: Callable[..., Any]
    eager: Callable[..., Any]


def eager_function(module: nn.Module) -> Callable[..., Any]:
    """The eager attention function of the file that a module's forward is written in."""
    forward: Any = inspect.unwrap(type(module).forward)
    return forward.__globals__.get("eager_attention_forward", _eager)


def attach(
    module: nn.Module,
    store: Store,
    wanted: Mapping[Any, Mapping[str, tuple[Key, ...]]],
    *,
    counter: str = "",
    returns: bool = False,
) -> None:
    """Let one attention module, and no other, use the capturing attention function."""
    from transformers import AttentionInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    AttentionInterface.register(NAME, capture_attention)
    changed: Any = module
    base, eager = changed.config._attn_implementation, eager_function(module)
    if base is not None and "flex" in base:
        raise ValueError(
            "attention capture: the model uses flex attention, whose masks cannot be read. "
            "Load it with attn_implementation='sdpa'."
        )
    usual = ALL_ATTENTION_FUNCTIONS.get_interface(base or "eager", eager)
    changed._fkd_capture = Tag(wanted, returns, counter, store, usual, eager)
    changed.config = copy.copy(changed.config)
    changed.config._attn_implementation_internal = NAME


def capture_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention as the model computes it, writing what its tag asks for into the store."""
    tag: Tag = module._fkd_capture  # pyright: ignore[reportAssignmentType]
    wanted = tag.wanted.get(numbered(tag.store, tag.counter), {})
    states = {"query": query, "key": key, "value": value}
    for kind in wanted.keys() & states.keys():
        _keep(tag, wanted, kind, states[kind])
    explicit = tag.returns or "attention" in wanted
    if not explicit and "attention_scores" not in wanted:
        return tag.base(module, query, key, value, attention_mask, dropout=dropout, **options)
    mask = additive_mask(module, query, key, attention_mask, options)
    eager = partial(tag.eager, module, query, key, value, mask, dropout=dropout, **options)
    if not explicit:
        _keep(tag, wanted, "attention_scores", _scores(eager, key.shape[2]))
        return tag.base(module, query, key, value, attention_mask, dropout=dropout, **options)
    dropped = module.training and dropout > 0
    if not dropped and "attention_scores" not in wanted:
        output, weights = eager()
    else:
        seen = Seen()
        with Watch(seen):
            output, weights = eager()
        scores, probabilities, _ = seen.maps[-1]
        _keep(tag, wanted, "attention_scores", scores[..., : key.shape[2]])
        if dropped:  # the map is wanted before dropout, the output after it
            weights = probabilities[..., : key.shape[2]].to(query.dtype)
    _keep(tag, wanted, "attention", weights)
    return output, weights


def _scores(eager: Callable[[], Any], length: int) -> Tensor:
    """What the eager function takes the softmax of, without the columns of sinks."""
    seen = Seen()
    if torch.compiler.is_compiling():  # what follows the softmax is dropped from the graph
        with Watch(seen):
            eager()
    else:
        with contextlib.suppress(Reached), Watch(seen, until_softmax=True):
            eager()
    return seen.maps[-1][0][..., :length]


def numbered(store: Store, counter: str) -> int | None:
    """The number of this call, for modules that run as several layers."""
    if not counter:
        return None
    number = store.get(counter, 0)
    store[counter] = number + 1
    return number


def _keep(tag: Tag, wanted: Mapping[str, tuple[Key, ...]], kind: str, value: Tensor) -> None:
    for key in wanted.get(kind, ()):
        tag.store[key] = value


def _repeat(x: Tensor, heads: int) -> Tensor:
    """Key or value states for every query head (grouped-query attention)."""
    groups = heads // x.shape[1]
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


def additive_mask(
    module: nn.Module, query: Tensor, key: Tensor, mask: Any, options: Mapping[str, Any]
) -> Tensor | None:
    """The mask that SDPA was given as one to add to scores, as in the eager path.

    SDPA's masks are boolean (True: attend), or None where `is_causal` says it all.
    """
    if mask is None:
        mask = _implied(module, query, key, options)
    if mask is None or not isinstance(mask, Tensor) or mask.is_floating_point():
        return mask
    if mask.ndim == 2:  # flash attention: padding only
        implied = _implied(module, query, key, options)
        mask = mask.bool()[:, None, None, :]
        mask = mask if implied is None else mask & implied
    zero = torch.zeros((), dtype=query.dtype, device=query.device)
    return torch.where(mask, zero, torch.finfo(query.dtype).min)


def _implied(
    module: nn.Module, query: Tensor, key: Tensor, options: Mapping[str, Any]
) -> Tensor | None:
    """The causal mask `[1, 1, query, key]` that stands behind a missing mask."""
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if not causal or query.shape[2] == 1:
        return None
    rows = torch.arange(query.shape[2], device=query.device)[:, None]
    columns = torch.arange(key.shape[2], device=query.device)
    window = options.get("sliding_window")
    mask = rows >= columns
    return (mask if window is None else mask & (rows - columns < window))[None, None]


def _eager(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Eager attention for a model whose file has none."""
    scaling = options.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query @ _repeat(key, query.shape[1]).transpose(-1, -2) * scaling
    if options.get("softcap") is not None:
        scores = torch.tanh(scores / options["softcap"]) * options["softcap"]
    if options.get("position_bias") is not None:
        scores = scores + options["position_bias"]
    weights = (scores if attention_mask is None else scores + attention_mask).softmax(-1)
    weights = F.dropout(weights, dropout, module.training)
    return (weights @ _repeat(value, weights.shape[1])).transpose(1, 2).contiguous(), weights
