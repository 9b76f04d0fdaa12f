"""What a step needs beside a state: leaves for autograd, and an optimizer over its tensors."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from fkd._base.types import Scalars
from fkd._objective.program import Parts
from fkd.parallel._shards import cutting_of, locals_of

from .._base.state import State
from .by_model import Names
from .optimizer import MakeOptimizer
from .updaters import Optimizers, Updaters


class Handles:
    """Objects over the tensors of one state, which a step updates in place.

    Attributes:
      leaves: the trainable tensors as tensors that require grad and share their memory. Made
        here and not in the graph, since torch 2.11 cannot trace `requires_grad_`.
      updater: the optimizers.
      marked: whether the tensors are known to captured graphs as staying where they are.
      last_step: the number of the last step that was taken; -1 before the first.
    """

    def __init__(self, make_optimizer: MakeOptimizer | Optimizers, state: State) -> None:
        self._tensors = _tensors_of(state)
        self._frozen = state.frozen
        self._local = locals_of(state.trainable)
        self._local_frozen = locals_of(state.frozen)
        self.leaves = {
            model: {name: p.detach().requires_grad_() for name, p in params.items()}
            for model, params in self._local.items()
        }
        self.updater = Updaters(make_optimizer, self._local, state.optimizer)
        if cutting_of(state.trainable) is not None:
            _refuse_matrices(self.updater)
        self.marked = False
        self._began, self.last_step = state.optimizer, -1

    def were_of(self, state: State) -> bool:
        """Whether these are the handles of what has become of a state by a step, or by several."""
        if state.optimizer is self._began and self._began is not self.updater.tree:
            return state.step <= self.last_step
        return state.step == self.last_step and state.optimizer is self.updater.tree

    def parts(self, state: State) -> Parts:
        """What the objective is a function of, with leaves in place of the trainable tensors."""
        return Parts(self.leaves, self._frozen_here(state), state.buffers, state.loss_state)

    def here(self, state: State) -> State:
        """The state, with the rows of this rank where a tensor is cut over several."""
        return state._replace(trainable=self._local, frozen=self._frozen_here(state))

    def _frozen_here(self, state: State) -> dict[str, dict[str, Tensor]]:
        if state.frozen is not self._frozen:
            self._frozen, self._local_frozen = state.frozen, locals_of(state.frozen)
        return self._local_frozen

    def fit(self, state: State) -> bool:
        """Whether these are the handles of a state."""
        tensors = _tensors_of(state)
        return (
            self.updater.tree is state.optimizer
            and len(tensors) == len(self._tensors)
            and all(a is b for a, b in zip(tensors, self._tensors, strict=True))
        )


class AtStep(NamedTuple):
    """What holds at one step of a state.

    Attributes:
      scalars: the moving knobs.
      factors: on the learning rates, by the models of an optimizer.
      updated: the models that are updated.
      handles: leaves and optimizers.
    """

    scalars: Scalars
    factors: Mapping[Names, float]
    updated: Names
    handles: Handles


class HandlesByState:
    """The handles of every state that a step is used for, for as long as the state lives.

    A state keeps one tensor from step to step, `skipped`, which no handle refers to: by it a
    state is known again, and with it the handles go.
    """

    def __init__(self, make_optimizer: MakeOptimizer | Optimizers) -> None:
        self._make_optimizer = make_optimizer
        self._by_state: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._last: tuple[weakref.ref[Tensor], weakref.ref[Handles]] | None = None

    def of(self, state: State) -> Handles:
        """The handles of a state, made at its first use."""
        handles = self._known(state.skipped)
        if handles is None or not handles.fit(state):
            handles = Handles(self._make_optimizer, state)
            self._by_state[state.skipped] = handles
        if self._last is None or self._last[1]() is not handles:
            self._last = weakref.ref(state.skipped), weakref.ref(handles)
        return handles

    def next_of(self, state: State) -> Handles:
        """The same before a step; a state that was left behind by one is told."""
        known = self._known(state.skipped)
        if known is not None and known.were_of(state):
            warnings.warn(
                f"step: step {state.step} of this state was taken before, and its tensors have "
                "moved on since, with what the optimizer remembers. Go on with the new state: "
                "state, metrics = step(state, batch).",
                RuntimeWarning,
                stacklevel=5,
            )
        return self.of(state)

    def _known(self, skipped: Tensor) -> Handles | None:
        """The handles kept for a state; those of the last one are at hand."""
        if self._last is not None and self._last[0]() is skipped:
            return self._last[1]()
        return self._by_state.get(skipped)


def _refuse_matrices(updater: Updaters) -> None:
    """Rows are enough for an optimizer that treats every number by itself, and for no other."""
    kinds = [getattr(torch.optim, name, None) for name in ("Muon", "Adafactor")]
    for optimizer in updater.optimizers.values():
        if type(optimizer) in kinds:
            raise ValueError(
                f"train_step: {type(optimizer).__name__} looks at whole matrices, and the mesh "
                'cuts them over its axis "shard". Use AdamW or another optimizer that treats '
                'every number by itself, or a mesh whose only axis is "replicate".'
            )


def _tensors_of(state: State) -> list[Tensor]:
    return [p for params in state.trainable.values() for p in params.values()]
