"""transformers' own collection of hidden states and maps, made ready before compiling."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from ._attend import Store, Tag, attach
from ._forward import is_transformers
from ._sites import attention_parts, uses_interface


def return_all_maps(model: nn.Module, store: Store) -> None:
    """Every layer returns its map, for transformers to collect: as `output_attentions` asks."""
    parts = attention_parts(model)
    sites = [s for layers in parts.values() for s in layers.values()]
    for site in (s for s in sites if uses_interface(s.module)):
        tag: Tag | None = getattr(site.module, "_fkd_capture", None)
        if tag is None:
            attach(site.module, store, {}, returns=True)
        elif not tag.returns:
            module: Any = site.module
            module._fkd_capture = replace(tag, returns=True)
    if not all(uses_interface(s.module) for s in sites) or not sites:
        configs: list[Any] = [getattr(m, "config", None) for m in model.modules()]
        for config in configs:
            if hasattr(config, "_attn_implementation_internal"):
                config._attn_implementation_internal = "eager"


def install_output_hooks(model: nn.Module) -> None:
    """Install the hooks that transformers would install, under a lock, in the first forward.

    Hooks that the model's own earlier forward passes have left are taken away first: installed
    twice, they collect everything twice.
    """
    from transformers.utils import output_capturing

    for module in model.modules():
        hooks: Any = module._forward_hooks  # pyright: ignore[reportPrivateUsage]
        source = output_capturing.__name__
        for key in [k for k, h in hooks.items() if getattr(h, "__module__", "") == source]:
            del hooks[key]
        vars(module).pop("_output_capturing_hooks_installed", None)
    if is_transformers(model):
        output_capturing.maybe_install_capturing_hooks(model)  # pyright: ignore[reportArgumentType]


def collects_nothing(hook: Any, model: nn.Module, flags: Mapping[str, Any]) -> bool:
    """Whether a hook is one of transformers' own, for an output that is not asked for.

    Args:
      hook: of some module.
      model: of which the module is a part.
      flags: with which the model is called.
    """
    if getattr(hook, "__module__", "") != "transformers.utils.output_capturing":
        return False
    key = inspect.getclosurevars(hook).nonlocals.get("key")
    if key is None:
        return False
    flag = f"output_{key}"
    configs: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    return not flags.get(flag) and not any(getattr(config, flag, False) for config in configs)
