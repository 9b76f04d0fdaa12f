"""One momentum for each group of terms (DOT)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._combination import Gradient, Groups, sum_of


@dataclass(frozen=True)
class Momenta:
    """See `momenta`, which makes it."""

    momentum: Mapping[str, float]
    groups: Groups | None = None

    def init(self, parameters: Gradient, groups: Sequence[str]) -> dict[str, Any]:
        """Velocities of 0."""
        return {
            group: {m: {n: torch.zeros_like(p) for n, p in tensors.items()}
                    for m, tensors in parameters.items()}
            for group in groups
        }  # fmt: skip

    def __call__(
        self, gradients: Mapping[str, Gradient], losses: Mapping[str, Tensor], state: Any
    ) -> tuple[Gradient, Any]:
        new = {
            group: {
                m: {n: self.momentum[group] * state[group][m][n] + g for n, g in tensors.items()}
                for m, tensors in gradient.items()
            }
            for group, gradient in gradients.items()
        }
        first = next(iter(new.values()))
        ones = [torch.ones(())] * len(new)
        total = {
            m: {n: sum_of([velocity[m][n] for velocity in new.values()], ones) for n in tensors}
            for m, tensors in first.items()
        }
        return total, {group: {**state[group], **new[group]} for group in new}


def momenta(momentum: Mapping[str, float], groups: Groups | None = None) -> Momenta:
    """One momentum for each group of terms, and the sum of the velocities as the gradient.

        v_k = mu_k v_k + g_k,   gradient = sum_k v_k

    For an optimizer without a momentum of its own: `torch.optim.SGD(params, lr=0.05)`.

    Args:
      momentum: `{group: mu}`, each in [0, 1).
      groups: `{group: terms}`; None: the groups are terms.

    Raises:
      ValueError: a momentum is out of range, or a group has none.

    Example:
      >>> combine = momenta({"kd": 0.9, "labels": 0.5})
      >>> one = {"student": {"w": torch.ones(1)}}
      >>> state = combine.init(one, ["kd", "labels"])
      >>> _, state = combine({"kd": one, "labels": one}, {}, state)
      >>> combine({"kd": one, "labels": one}, {}, state)[0]
      {'student': {'w': tensor([3.4000])}}
    """
    for group, mu in momentum.items():
        if not 0 <= mu < 1:
            raise ValueError(f"momenta: momentum of {group!r} is {mu}; a number in [0, 1).")
    if groups is not None and set(groups) != set(momentum):
        raise ValueError(
            f"momenta: groups {sorted(groups)} and momentum {sorted(momentum)}; one momentum for "
            "each group is expected."
        )
    return Momenta(dict(momentum), groups or {name: (name,) for name in momentum})


def dot(
    *, task: Sequence[str], distill: Sequence[str], momentum: float = 0.9, delta: float = 0.075
) -> Momenta:
    """Distillation-oriented training: more momentum for distillation, less for the task (DOT).

        v_kd = (mu + delta) v_kd + g_kd,   v_task = (mu - delta) v_task + g_task
        gradient = v_kd + v_task

    With `torch.optim.SGD` without momentum it is the trainer of the paper.

    Args:
      task: names of the terms of the task (labels).
      distill: names of the terms of distillation.
      momentum: mu.
      delta: in [0, 1 - mu).

    Example:
      >>> dot(task=["labels"], distill=["kd"], momentum=0.75, delta=0.125).momentum
      {'task': 0.625, 'distill': 0.875}

    Reference:
      Zhao et al., DOT: A Distillation-Oriented Trainer, arXiv:2307.08436.
    """
    moments = {"task": momentum - delta, "distill": momentum + delta}
    return momenta(moments, {"task": tuple(task), "distill": tuple(distill)})
