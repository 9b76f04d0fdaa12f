"""Gradients by plain autograd, inside a compiled graph too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def gradients(loss: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """The derivative of a loss by each leaf; zeros where it does not depend on it.

    Not torch.func.grad, which inside torch.compile (torch 2.11 to 2.13) differentiates the
    forward of an `autograd.Function` and silently ignores its backward. The graph, the speed
    and, for other functions, the bits are the same.

    Args:
      loss: `[]`.
      leaves: tensors that require grad.
    """
    if not loss.requires_grad:
        return [torch.zeros_like(x) for x in leaves]
    found: Any = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]


class Leaves:
    """The trainable tensors of a state as tensors that require grad and share their memory.

    Made here and not in the graph, since torch 2.11 cannot trace `requires_grad_`; kept from
    one step to the next, since a step updates its tensors in place.
    """

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []
        self._leaves: dict[str, dict[str, Tensor]] = {}

    def of(self, trainable: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """The leaves of a state, in the same nested dict."""
        tensors = [p for held in trainable.values() for p in held.values()]
        same = len(tensors) == len(self._tensors) and all(
            a is b for a, b in zip(tensors, self._tensors, strict=True)
        )
        if not same:
            self._tensors = tensors
            self._leaves = {
                m: {n: p.detach().requires_grad_() for n, p in held.items()}
                for m, held in trainable.items()
            }
        return self._leaves
