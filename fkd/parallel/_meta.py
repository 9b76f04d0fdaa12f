"""Modules whose parameters have shapes and no values."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.weak import WeakIdKeyDictionary


@contextlib.contextmanager
def on_meta() -> Generator[None]:
    """Inside, modules are made with parameters on the meta device, and buffers that hold values.

    For models that no process should hold whole: their values are read from files, each
    process its rows, where `fkd.frozen` and `fkd.trainable` have `weights=`.

        with fkd.parallel.on_meta():
            large = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        teacher = fkd.frozen(large, weights="folder")

    Inside of `torch.device("meta")` buffers would lose their values, too; a rotary embedding has
    its frequencies in one that no file has.

    Example:
      >>> with on_meta():
      ...     module = torch.nn.BatchNorm1d(3)
      >>> module.weight.device, module.running_var
      (device(type='meta'), tensor([1., 1., 1.]))
    """
    moved: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def emptied(module: nn.Module, name: str, p: Tensor | None) -> Tensor | None:
        del module, name
        if p is None or p.is_meta:
            return None
        if p not in moved:  # one that is registered twice is tied
            moved[p] = nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad)
        return moved[p]

    handle = register_module_parameter_registration_hook(emptied)  # pyright: ignore
    try:
        yield
    finally:
        handle.remove()
