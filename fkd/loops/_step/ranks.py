"""A step over several ranks: what they agree on before the first of their steps."""

from __future__ import annotations

from typing import Any

import optree
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from fkd._objective.objective import Objective
from fkd._trees import map_tensors
from fkd._types import TensorBatch
from fkd.parallel._mesh import Axes, axes_of
from fkd.parallel._objective import OverRanks
from fkd.parallel._relating import Relations, relations
from fkd.parallel._world import World, world_of

from .._digest import digest_of
from .._state import State


class Together:
    """The ranks of a step.

    Attributes:
      axes: of the mesh.
      world: the processes, on the host.
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        self.axes: Axes = axes_of(mesh)
        self.world: World = world_of(mesh)

    @property
    def ranks(self) -> Any:
        """Those among which the examples of each batch are divided."""
        return self.axes.ranks

    def objective(self, objective: Objective, batch: TensorBatch) -> OverRanks:
        """The objective on the examples of a rank; the ranks agree on what they gather."""
        own = relations(objective, batch)
        every = self.world.exchanged(sorted(own.terms))
        terms = frozenset(name for names in every for name in names)
        return OverRanks(objective, self.ranks, Relations(terms, own.by_example))

    def agreed(self, state: State) -> State:
        """The state of the first rank in all of them. Where all have the same already, as from
        one file or one seed, nothing is sent."""
        trees = {n: self._of_first(getattr(state, n)) for n in ("trainable", "frozen", "buffers")}
        return state._replace(**trees, loss_state=self._of_first(state.loss_state))

    def _of_first(self, tree: dict[str, Any]) -> dict[str, Any]:
        """A tree, of which the parts that differ are those of the first rank."""
        return {name: self._part_of_first(part) for name, part in tree.items()}

    def _part_of_first(self, part: Any) -> Any:
        tensors = [x for x in optree.tree_leaves(part) if isinstance(x, Tensor)]
        digest = digest_of((str(i), x) for i, x in enumerate(tensors))
        if len(set(self.world.exchanged(digest))) == 1:
            return part
        copies = map_tensors(lambda x: x.detach().clone(), part)
        map_tensors(self.world.broadcast, copies)
        return copies
