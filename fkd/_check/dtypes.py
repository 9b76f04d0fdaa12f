"""Dtypes that do not go together: fake tensors multiply them, and real ones do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

ATEN = torch.ops.aten
_FACTORS: dict[Any, tuple[int, int]] = {
    ATEN.mm: (0, 1),
    ATEN.bmm: (0, 1),
    ATEN.linear: (0, 1),
    ATEN.convolution: (0, 1),
    ATEN.addmm: (1, 2),
    ATEN.baddbmm: (1, 2),
}
"""The places of the two factors among the arguments of a product."""


class SameDtypes(TorchDispatchMode):
    """Refuses products of two dtypes, as the kernels do."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        places = _FACTORS.get(func.overloadpacket)
        if places is not None and len(args) > max(places):
            a, b = (args[i] for i in places)
            if isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype != b.dtype:
                raise RuntimeError(
                    "the two factors of a product must have the same dtype, and have "
                    f"{_name(a.dtype)} and {_name(b.dtype)}"
                )
        return func(*args, **(kwargs or {}))


def dtypes_hint(module: nn.Module, given: Mapping[str, Any]) -> str:
    """What to convert, where a model is given numbers of another dtype than its parameters'."""
    own = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
    others = {k: x.dtype for k, x in given.items() if isinstance(x, Tensor) and x.dtype != own}
    if own is None or not others:
        return ""
    said = ", ".join(f"{k} is {_name(dtype)}" for k, dtype in others.items())
    return (
        f" Its parameters are {_name(own)}; {said}. Convert what it is given, in the loader or by "
        f"inputs=lambda batch: batch[...].to(torch.{_name(own)}), or the model: module.float(). "
        'A model in bfloat16 beside others: train_step(precision="bf16"), or inputs of its own.'
    )


def is_of_dtypes(error: Exception) -> bool:
    """Whether a forward pass failed for the dtype of what it was given."""
    text = str(error)
    return any(
        words in text
        for words in ("same dtype", "should be the same", "scalar type", "weight dtype")
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
