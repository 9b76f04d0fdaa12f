"""A step over several ranks: what they agree on before the first of their steps."""

from __future__ import annotations

from typing import Any

import optree
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from fkd._base.trees import map_tensors
from fkd._base.types import TensorBatch
from fkd._objective.objective import Objective
from fkd.parallel._mesh import Axes, axes_of
from fkd.parallel._objective import OverRanks
from fkd.parallel._ranks import Ranks
from fkd.parallel._relating import relations
from fkd.parallel._shards import cutting, is_cut, is_foreign, moments_like, whole
from fkd.parallel._world import World, world_of

from .._base.digest import digest_of
from .._base.state import State


class Together:
    """The ranks of a step.

    Attributes:
      axes: of the mesh.
      world: the processes, on the host.
      related: the terms that relate the examples of a batch; None before the first batch. Part of
        a checkpoint, since another first batch may say otherwise, in the last bits.
    """

    def __init__(self, mesh: DeviceMesh, objective: Objective, sent: torch.dtype | None) -> None:
        self.axes: Axes = axes_of(mesh)
        self.world: World = world_of(mesh)
        self.related: frozenset[str] | None = None
        axis = self.axes.shard
        self.cutting = None if axis is None else cutting(objective, self.axes.data, axis, sent)

    @property
    def ranks(self) -> Ranks:
        """Those among which the examples of each batch are divided."""
        return self.axes.ranks

    def objective(self, objective: Objective, batch: TensorBatch) -> OverRanks:
        """The objective on the examples of a rank; the ranks agree on what they gather."""
        relating = relations(objective, batch)
        if self.related is None:
            every = self.world.exchanged(sorted(relating.terms))
            self.related = frozenset(name for names in every for name in names)
        agreed = relating._replace(terms=self.related)
        return OverRanks(objective, self.ranks, agreed, self.cutting)

    def cut(self, state: State) -> State:
        """The state of which this rank holds its rows."""
        if self.cutting is None:
            return state
        trees = {n: self.cutting.cut(getattr(state, n)) for n in ("trainable", "frozen")}
        return state._replace(**trees)

    def whole(self, state: State) -> State:
        """The whole state in the first process, on the host; all of them have to ask.

        One tensor after another is gathered, and kept by the first process alone.
        """
        if self.cutting is None:
            return state

        def of_first(x: Any, like: Any = None) -> Any:
            every = whole(x, like)
            return every if self.world.first else x

        places = {f"{m}.{n}": p for m, params in state.trainable.items() for n, p in params.items()}
        return state._replace(
            trainable={
                m: {n: of_first(x) for n, x in t.items()} for m, t in state.trainable.items()
            },
            frozen={m: {n: of_first(x) for n, x in t.items()} for m, t in state.frozen.items()},
            optimizer={
                name: {k: of_first(v, places[name]) for k, v in values.items()}
                for name, values in state.optimizer.items()
            },
        )

    def in_parts(self, state: State) -> State:
        """The state in which also what an optimizer remembers are parts of wholes."""
        places = {f"{m}.{n}": p for m, params in state.trainable.items() for n, p in params.items()}
        return state._replace(
            optimizer={
                name: {k: moments_like(v, places[name]) for k, v in values.items()}
                for name, values in state.optimizer.items()
            }
        )

    def agreed(self, state: State) -> State:
        """The state of the first rank in all of them. Where all have the same already, as from
        one file or one seed, nothing is sent."""
        trees = {n: self._of_first(getattr(state, n)) for n in ("trainable", "frozen", "buffers")}
        return state._replace(**trees, loss_state=self._of_first(state.loss_state))

    def _of_first(self, tree: dict[str, Any]) -> dict[str, Any]:
        """A tree, of which the parts that differ are those of the first rank."""
        return {name: self._part_of_first(part) for name, part in tree.items()}

    def _part_of_first(self, part: Any) -> Any:
        leaves = optree.tree_leaves(part)
        tensors = [x for x in leaves if isinstance(x, Tensor) and not _in_parts(x)]
        digest = digest_of((str(i), x) for i, x in enumerate(tensors))
        if len(set(self.world.exchanged(digest))) == 1:
            return part

        def of_first(x: Tensor) -> Tensor:
            if _in_parts(x):
                return x
            copy = x.detach().clone()
            self.world.broadcast(copy)
            return copy

        return map_tensors(of_first, part)


def _in_parts(x: Tensor) -> bool:
    """Whether each rank has a part of its own: by a model's plan, or read so from a file."""
    return is_foreign(x) or is_cut(x)
