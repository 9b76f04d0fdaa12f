"""What is given for a model and is none, or cannot be copied: what it is, and what to give."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn.parameter import is_lazy


def not_a_model(module: object, is_stored: Callable[[str], bool] = lambda name: False) -> str:
    """What is wrong with a module, as the end of a sentence; nothing if it can be used.

    Args:
      module: what was given.
      is_stored: which of its tensors have their values in files.
    """
    if not isinstance(module, nn.Module):
        return _not_a_module(module)
    if isinstance(module, torch.jit.ScriptModule):
        return (
            "is a torch.jit.ScriptModule, whose structure cannot be copied; the module that it was "
            "made from is expected. fkd compiles the whole step."
        )
    if hasattr(module, "_orig_mod"):  # of torch.compile
        return (
            "is what torch.compile(module) returned; the module itself is expected: "
            "module._orig_mod. fkd compiles the whole step."
        )
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return (
            f"is a {type(module).__name__}; the module inside is expected: module.module. Several "
            "processes: train_step(mesh=...)."
        )
    return _without_values(module, is_stored) or two_of_one_memory(module)


def two_of_one_memory(module: nn.Module) -> str:
    """What is wrong with parameters that are tied by their memory, and not by being one object."""
    places: dict[tuple[int, int], str] = {}
    for name, p in module.named_parameters():
        if type(p) is nn.Parameter and p.requires_grad and not p.is_meta and p.numel():
            other = places.setdefault((p.data_ptr(), p.numel()), name)
            if other != name:
                return (
                    f"has {other!r} and {name!r}, two parameters with one memory; a step keeps "
                    "parameters by name, and would train two copies that part. Tie them as one "
                    "object: a.weight = b.weight. For adapters of PEFT leave out "
                    "ensure_weight_tying."
                )
    return ""


def _not_a_module(value: object) -> str:
    what = f"{type(value).__name__} is not a torch.nn.Module."
    if isinstance(value, type):
        loads = hasattr(value, "from_pretrained")
        loaded = f", or {value.__name__}.from_pretrained(...)" if loads else ""
        return (
            f"is the class {value.__name__}, not a torch.nn.Module. Make one: "
            f"{value.__name__}(...){loaded}."
        )
    if isinstance(value, str):
        return (
            f"is the string {value!r}, not a torch.nn.Module. Load it: transformers.AutoModel..."
            f".from_pretrained({value!r}), or of a file, module.load_state_dict(torch.load(...))."
        )
    if isinstance(value, Mapping):
        return (
            f"{what} A state dict has no forward pass: make the module, and "
            "module.load_state_dict(it)."
        )
    if hasattr(value, "convert_tokens_to_ids"):
        return (
            f"{what} It is a tokenizer: the model is expected here, and tokenizers are given to "
            "fkd.check(objective, batch, tokenizers={'student': tokenizer})."
        )
    if callable(value):
        return f"{what} A function of the outputs or the batch is a ref: fkd.call(fn, ref, ...)."
    return what


def _without_values(module: nn.Module, is_stored: Callable[[str], bool]) -> str:
    """What is wrong with tensors that are not there yet."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if is_lazy(tensor):
            return (
                f"has the parameter {name!r}, whose shape is not known before the first forward "
                "pass. Run the module once on a batch, before the objective is made."
            )
        if tensor.is_meta and not is_stored(name):
            return (
                f"has {name!r} on the meta device, where tensors have no values. Say in which "
                "folder they are: fkd.frozen(module, weights=folder), or likewise fkd.trainable. "
                "Or load it on a device that has values: module.to_empty(device='cpu') and "
                "load_state_dict, or from_pretrained without a meta device."
            )
    return ""
