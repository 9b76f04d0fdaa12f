"""The optimizers over the tensors of one state: one for all models, or one for some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor
from torch.optim import Optimizer

from .by_model import Names, label
from .optimizer import MakeOptimizer, Updater

Optimizers: TypeAlias = Mapping[Names, MakeOptimizer]
"""The function that makes an optimizer, by the models that it updates."""


class Turn(NamedTuple):
    """What one optimizer updates.

    Attributes:
      models: of the optimizer.
      places: of the gradient of each of its parameters; None: the parameter stays as it is.
    """

    models: Names
    places: Sequence[int | None]


class Updaters:
    """Optimizers side by side. What they remember is one `tree`, by the parameters' names."""

    def __init__(
        self,
        make: MakeOptimizer | Optimizers,
        trainable: Mapping[str, Mapping[str, Tensor]],
        tree: Mapping[str, Mapping[str, Any]],
    ) -> None:
        makers = make if isinstance(make, Mapping) else {tuple(trainable): make}
        self._by_models: dict[Names, Updater] = {}
        for names, maker in makers.items():
            members = {name: trainable[name] for name in names if name in trainable}
            if members:
                remembered = {n: tree[n] for n in _names(members) if n in tree}
                self._by_models[names] = Updater(maker, members, remembered)
        self._sizes = {model: len(params) for model, params in trainable.items()}
        self._turns: dict[Names, list[Turn]] = {}
        self._trees: list[Mapping[str, Any]] = []
        self._tree: dict[str, dict[str, Any]] = {}

    @property
    def tree(self) -> dict[str, dict[str, Any]]:
        """The `optimizer` field of the state; the same object for as long as nothing is added."""
        trees = [updater.tree for updater in self._by_models.values()]
        if len(trees) == 1:
            return trees[0]
        if not _same(trees, self._trees):
            self._trees = [*trees]
            self._tree = {name: memory for tree in trees for name, memory in tree.items()}
        return self._tree

    @property
    def optimizers(self) -> dict[Names, Optimizer]:
        """By the models that they update."""
        return {names: updater.optimizer for names, updater in self._by_models.items()}

    def rates(self, factors: Mapping[Names, float]) -> dict[str, float]:
        """The learning rate of each parameter group: `lr/0`, or `lr/student` of several optimizers
        (`lr/student/0` where such a one has several groups)."""
        rates: dict[str, float] = {}
        for names, updater in self._by_models.items():
            alone, groups = len(self._by_models) == 1, updater.base_lr
            for i, base in enumerate(groups):
                key = str(i) if alone else f"{label(names)}/{i}" if groups[1:] else label(names)
                rates[f"lr/{key}"] = float(base) * factors[names]
        return rates

    def update(
        self,
        grads: Sequence[Tensor],
        finite: Tensor,
        factors: Mapping[Names, float],
        models: Names,
    ) -> None:
        """A step of every optimizer that has something to update.

        Args:
          grads: of the parameters of `models`, in the order of the state.
          finite: `[]`; False leaves everything as it is.
          factors: on the learning rates, by the models of an optimizer.
          models: those that are updated; the others stay as they are.
        """
        if models not in self._turns:
            self._turns[models] = self._turns_of(models)
        for names, places in self._turns[models]:
            chosen = [None if place is None else grads[place] for place in places]
            self._by_models[names].update(chosen, finite, factors[names])

    def _turns_of(self, models: Names) -> list[Turn]:
        """The optimizers that update some of these models."""
        places: dict[str, list[int]] = {}
        for model in models:
            start = sum(map(len, places.values()))
            places[model] = [*range(start, start + self._sizes[model])]
        turns: list[Turn] = []
        for names in self._by_models:
            members = [name for name in names if name in self._sizes]
            resting = {name: [None] * self._sizes[name] for name in members}
            if any(name in places for name in members):
                turns.append(Turn(names, [p for m in members for p in places.get(m, resting[m])]))
        return turns


def _names(trainable: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
    return [f"{model}.{name}" for model, params in trainable.items() for name in params]


def _same(trees: Sequence[object], before: Sequence[object]) -> bool:
    return len(trees) == len(before) and all(a is b for a, b in zip(trees, before, strict=True))
