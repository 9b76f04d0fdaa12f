"""The state of a training run: one immutable record, and randomness as a function of it."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fkd._types import Params

MASK = (1 << 64) - 1


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


def fold_in(seed: int, data: int) -> int:
    """A new seed from a seed and a number (a step, an epoch, a rank): 64 bits, well mixed.

    All randomness of a run follows from `fold_in(seed, step)`, so that resuming at a step
    needs no saved generator. The mixing function is SplitMix64 (Steele et al., 2014).

    Example:
      >>> fold_in(0, 1) == fold_in(0, 1), fold_in(0, 1) == fold_in(0, 2)
      (True, False)
    """
    return _mix((_mix(seed & MASK) ^ (data & MASK)) & MASK)


def _mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Generator[None]:
    """Random numbers from `seed` inside, and the generators as they were afterwards."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    before = [g.get_state() for g in generators]
    for generator in generators:
        generator.manual_seed(seed)
    try:
        yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)


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
