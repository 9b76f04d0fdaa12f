"""What a model leaves to chance on the host while it trains: whole layers, masks of its input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from ._sites import names_used

_DROPS = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop", "speech_encoder_layerdrop")


def layer_drop(model: nn.Module) -> str | None:
    """The setting by which a model leaves out whole layers at random, if it does.

    Example:
      >>> layer_drop(torch.nn.Linear(2, 2)) is None
      True
    """
    for module in model.modules():
        used = names_used(type(module)) if _is_of_transformers(module) else frozenset[str]()
        for name in _DROPS:
            if name not in used:
                continue
            for owner, where in ((module, ""), (getattr(module, "config", None), "config.")):
                value: Any = getattr(owner, name, None)
                if isinstance(value, int | float) and value > 0:
                    return f"{where or type(module).__name__ + '.'}{name}={value:g}"
    return None


def not_traceable(model: nn.Module) -> Iterator[str]:
    """Why a model in train mode cannot be compiled as one graph, and what to switch off."""
    drop = layer_drop(model)
    if drop is not None:
        yield (
            f"it leaves out whole layers at random ({drop}), which a graph cannot. Set the "
            "layerdrop settings of its config to 0 before it is made"
        )
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        masks = hasattr(module, "_mask_hidden_states") or hasattr(module, "_mask_input_features")
        chances = [getattr(config, f"mask_{axis}_prob", 0) for axis in ("time", "feature")]
        if masks and getattr(config, "apply_spec_augment", False) and max(chances) > 0:
            yield (
                "it draws the masks of SpecAugment with NumPy, which a graph cannot. Set "
                "config.apply_spec_augment = False, or mask the batches in the loader"
            )
            return


def _is_of_transformers(module: nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] == "transformers"
