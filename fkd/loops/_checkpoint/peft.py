"""Adapters of PEFT: written alone, or merged into the weights that they adapt.

PEFT is not imported: its models and layers are known by what they are made of.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn


def is_peft(module: nn.Module) -> bool:
    """Whether a module is a `PeftModel`."""
    kinds = type(module).__mro__
    return any(c.__name__ == "PeftModel" and c.__module__.startswith("peft.") for c in kinds)


def save_adapters(module: nn.Module, folder: Path) -> None:
    """Write the adapters of a `PeftModel`, and their configuration."""
    model: Any = module
    model.save_pretrained(str(folder))


def merged(module: nn.Module) -> nn.Module:
    """The module without adapters, whose weights give the same outputs. It uses its argument up.

    Raises:
      ValueError: there are no adapters in it.
    """
    base: Any = module
    base = base.get_base_model() if is_peft(module) else base
    layers = list(_adapted(base))
    if not layers:
        raise ValueError(
            f"export: merge=True, and the {type(module).__name__} has no adapters of PEFT to "
            "merge. Leave merge out."
        )
    for parent, name, layer in layers:
        layer.merge()
        setattr(parent, name, layer.get_base_layer())
    for model in (base, getattr(base, "config", None)):
        vars(model).pop("peft_config", None) if model is not None else None
    if hasattr(base, "_hf_peft_config_loaded"):
        base._hf_peft_config_loaded = False
    return base


def refuse_bare_adapters(module: nn.Module) -> None:
    """Refuse the inside of a `PeftModel`, whose names no one could load.

    Raises:
      ValueError: says what to do instead.
    """
    if not is_peft(module) and any(True for _ in _adapted(module)):
        raise ValueError(
            f"export: the {type(module).__name__} has adapters of PEFT inside, and its names load "
            "nowhere. Give the objective the PeftModel itself, fkd.trainable(peft_model), to "
            "write the adapters; or merge them into the weights: export(..., merge=True)."
        )


def _adapted(module: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """The layers that PEFT has put around others: parent, name, layer."""
    for parent in module.modules():
        for name, layer in parent.named_children():
            if hasattr(layer, "get_base_layer") and hasattr(layer, "merge"):
                yield parent, name, layer
