"""The units that pass from layer to layer of a `Sequential`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

_ACROSS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_ACROSS)
_BY_UNIT = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d,
    nn.LayerNorm, nn.RMSNorm, nn.PReLU,
)  # fmt: skip
_REORDER = (nn.Unflatten, nn.GLU, nn.PixelShuffle, nn.PixelUnshuffle, nn.Fold, nn.Unfold)

Signals = Mapping[tuple[str, int], str]
"""For each (parameter, axis), by which layer the units that it stands for are written."""


def signals_of(model: nn.Module) -> Signals | None:
    """What each axis of the parameters stands for; None where that is not a row of layers.

    Convolutions of several groups are left to the sizes, except those of one channel each.
    """
    if not isinstance(model, nn.Sequential):
        return None
    signals: dict[tuple[str, int], str] = {}
    written = "input"
    for name, layer in _in_a_row(model):
        if isinstance(layer, _REORDER):
            return None
        if isinstance(layer, _LAYERS):
            out, into = (1, 0) if isinstance(layer, _ACROSS) else (0, 1)
            groups = getattr(layer, "groups", 1)
            each: Any = layer
            by_channel = groups == getattr(layer, "in_channels", 0) == each.out_channels
            if groups > 1 and not by_channel:
                return None
            new = written if groups > 1 else name
            signals[f"{name}.weight", into] = written
            signals[f"{name}.weight", out] = new
            signals[f"{name}.bias", 0] = written = new
        elif isinstance(layer, _BY_UNIT):
            for key in layer.state_dict():
                signals[f"{name}.{key}", 0] = written
        elif list(layer.parameters()):
            return None
    return signals


def _in_a_row(model: nn.Sequential, prefix: str = "") -> list[tuple[str, nn.Module]]:
    layers: list[tuple[str, nn.Module]] = []
    for name, child in model.named_children():
        if isinstance(child, nn.Sequential):
            layers += _in_a_row(child, f"{prefix}{name}.")
        else:
            layers.append((f"{prefix}{name}", child))
    return layers
