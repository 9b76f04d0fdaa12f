"""Captures in models whose attention cannot be replaced: projections by hooks, maps as output."""

from __future__ import annotations

from typing import Any

from torch import nn

from ._attend import Store
from ._forward import is_transformers
from ._sites import number_of_heads, projection_parts, projections, resolve
from ._types import STATES, Capture
from ._watch import split_hook


def hook_projection(model: nn.Module, capture: Capture, store: Store) -> bool:
    """Capture a projection by a hook, in a model whose attention cannot be replaced."""
    if capture.kind not in STATES:
        return False
    parts = projection_parts(model)
    if not parts:
        raise ValueError(
            f"{capture.kind}({capture.layer}): {type(model).__name__} has no separate query, key "
            "and value projections, and its attention cannot be replaced. "
            "Use .tap(name) on the submodule that computes them."
        )
    part, layer = resolve(parts, capture)
    module = parts[part][layer].module
    linear = projections(module)
    assert linear is not None
    head_dim = linear[0].out_features // number_of_heads(module, model)
    projection = linear[STATES.index(capture.kind)]
    projection.register_forward_hook(split_hook(store, capture, head_dim))
    return True


def output_map(model: nn.Module, capture: Capture) -> tuple[str, int]:
    """Where the model's own output has a map. All layers compute theirs then."""
    if capture.kind != "attention" or not is_transformers(model):
        raise ValueError(
            f"{capture.kind}({capture.layer}): the attention of {type(model).__name__} cannot be "
            "replaced, so its scores cannot be captured. attention(layer), query, key, value "
            "and .tap(name) can."
        )
    fields = {"encoder": "encoder_attentions", "decoder": "decoder_attentions"}
    fields["cross"] = "cross_attentions"
    config: Any = model.config
    several = bool(getattr(config, "is_encoder_decoder", False))
    if several and capture.part not in fields:
        raise ValueError(
            f"attention({capture.layer}): part {capture.part!r}; one of {list(fields)} is expected."
        )
    depth: int = config.num_hidden_layers
    if not several and not -depth <= capture.layer < depth:
        raise ValueError(
            f"attention({capture.layer}): there is no such attention layer; layers 0 to "
            f"{depth - 1} are expected (or {-depth} to -1, from the end)."
        )
    return (fields.get(str(capture.part), "attentions"), capture.layer)
