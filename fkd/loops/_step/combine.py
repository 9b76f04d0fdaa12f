"""From the gradients of groups of terms to the one gradient that an optimizer receives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from fkd._base.errors import listing, nearest
from fkd._base.types import Params
from fkd._objective.objective import Objective
from fkd._objective.reach import Backward, backward_passes
from fkd.gradients import Combination, Gradient, together

from .gradient import Gradients, by_names, plain_norm

Combine: TypeAlias = Combination | Callable[[Mapping[str, Gradient]], Gradient]
"""A combination, or a plain function `{term: gradient} -> gradient`."""


class Combined:
    """A combination bound to the terms of an objective.

    Attributes:
      combination: as given.
      groups: the terms whose gradients are added up before, by the name of the group.
    """

    def __init__(self, objective: Objective, combine: Combine) -> None:
        if not isinstance(combine, Combination) and not callable(combine):
            raise TypeError(
                f"train_step: combine is {combine!r}; a combination of fkd.gradients, or a "
                "function {term: gradient} -> gradient, is expected: fkd.gradients.pcgrad()."
            )
        self.combination = combine if isinstance(combine, Combination) else together(combine)
        self.groups = _groups(self.combination.groups, objective.weighted)

    def init(self, trainable: Params) -> object:
        """What the combination remembers before the first step."""
        return self.combination.init(trainable, list(self.groups))

    def passes(self, objective: Objective, models: Sequence[str]) -> list[list[Backward]]:
        """The backward passes of each group."""
        return [
            backward_passes({name: objective.terms[name] for name in names}, models)
            for names in self.groups.values()
        ]

    def __call__(
        self, new: Gradients, trainable: Params, state: object
    ) -> tuple[list[Tensor], object, dict[str, Tensor]]:
        """The combined gradient, flat; the new state; and the norm of each group's gradient.

        Args:
          new: whose gradients stand group after group.
          trainable: the parameters of the models that are updated.
          state: of the combination.
        """
        rest = iter(new.grads)
        gradients = {group: by_names(rest, trainable) for group in self.groups}
        losses = {group: self._loss(names, new) for group, names in self.groups.items()}
        combined, state = self.combination(gradients, losses, state)
        flat = [
            _entry(combined, m, n, p)
            for m, tensors in trainable.items()
            for n, p in tensors.items()
        ]
        norms = {
            f"term_grad_norm/{group}": plain_norm(
                [x for tensors in g.values() for x in tensors.values()]
            )
            for group, g in gradients.items()
        }
        return flat, state, norms

    def _loss(self, names: Sequence[str], new: Gradients) -> Tensor:
        return torch.stack([new.weights[n] * new.means[n].value for n in names]).sum()


def _entry(combined: Gradient, model: str, name: str, parameter: Tensor) -> Tensor:
    tensors = combined.get(model, {})
    if name not in tensors or tensors[name].shape != parameter.shape:
        got = tuple(tensors[name].shape) if name in tensors else "nothing"
        raise ValueError(
            f"train_step: combine gave {got} for {model}.{name}; {tuple(parameter.shape)} is "
            "expected: a tree like the gradients that it is given, {model: {parameter: tensor}}."
        )
    return tensors[name].to(parameter.dtype)


def _groups(
    asked: Mapping[str, Sequence[str]] | None, terms: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """The terms of each group; terms that no group names are one of their own."""
    if asked is None:
        return {name: (name,) for name in terms}
    groups: dict[str, tuple[str, ...]] = {}
    for group, names in asked.items():
        groups[group] = tuple(n for n in terms if any(_below(n, prefix) for prefix in names))
        for prefix in names:
            if not any(_below(n, prefix) for n in terms):
                raise ValueError(
                    f"train_step: group {group!r} of combine names {prefix!r}, and no term with a "
                    f"weight is there. {nearest(prefix, terms)}Terms: {listing(terms)}."
                )
    named = [n for names in groups.values() for n in names]
    left = [n for n in terms if n not in named]
    twice = [n for n in terms if named.count(n) > 1]
    if left or twice:
        what = f"leave out {left[0]!r}" if left else f"name {twice[0]!r} twice"
        raise ValueError(
            f"train_step: the groups of combine {what}; every term with a weight is expected in "
            f"one group. Terms: {listing(terms)}."
        )
    return groups


def _below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + "/")
