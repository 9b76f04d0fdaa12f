"""The state of a training run: one immutable record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fkd._types import Params


class State(NamedTuple):
    """Everything a run is. A pytree: nested dicts of tensors, and two integers.

    A step uses its argument up (it updates the tensors in place) and returns the next state.

    Attributes:
      trainable: `{model: {parameter: tensor}}`, what the optimizer changes.
      frozen: likewise, the other parameters: teachers, frozen parts, EMA copies.
      buffers: likewise, the buffers of all models.
      optimizer: `{"model.parameter": {name: tensor}}`, empty before the first step.
      loss_state: `{term: state}` of the stateful terms.
      skipped: `[]`, how many updates were left out, since loss or gradient were not finite.
      step: how many batches have been used.
      seed: from which all randomness follows, with the step.
    """

    trainable: dict[str, dict[str, Tensor]]
    frozen: dict[str, dict[str, Tensor]]
    buffers: dict[str, dict[str, Tensor]]
    optimizer: dict[str, dict[str, Any]]
    loss_state: dict[str, Any]
    skipped: Tensor
    step: int
    seed: int


def device_of(tree: Params) -> torch.device:
    """Where the tensors of a tree are."""
    return next(p.device for held in tree.values() for p in held.values())


def norms_of(grads: Sequence[Tensor], trainable: Params) -> dict[str, Tensor]:
    """The norm of the gradient of each model, in float32."""
    flat = iter(grads)
    return {
        name: torch.stack([next(flat).float().square().sum() for _ in held]).sum().sqrt()
        for name, held in trainable.items()
    }


def copy_into(old: Params, new: Params) -> None:
    """The tensors of `new` into those of `old`, which are the state's own."""
    pairs = [(old[m][n], x) for m, held in new.items() for n, x in held.items()]
    changed = [(x, y) for x, y in pairs if x is not y]
    if changed:
        targets, sources = [x for x, _ in changed], [y for _, y in changed]
        torch._foreach_copy_(targets, sources)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
