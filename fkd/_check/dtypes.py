"""What to convert where a model is given numbers of another dtype than its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .kernels import name_of_dtype


def dtypes_hint(module: nn.Module, given: Mapping[str, Any]) -> str:
    """What to convert, where a model is given numbers of another dtype than its parameters'."""
    own = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
    others = {k: x.dtype for k, x in given.items() if isinstance(x, Tensor) and x.dtype != own}
    if own is None or not others:
        return ""
    said = ", ".join(f"{k} is {name_of_dtype(dtype)}" for k, dtype in others.items())
    name = name_of_dtype(own)
    return (
        f" Its parameters are {name}; {said}. Convert what it is given, in the loader or by "
        f"inputs=lambda batch: batch[...].to(torch.{name}), or the model: module.float(). "
        'A model in bfloat16 beside others: train_step(precision="bf16"), or inputs of its own.'
    )
