"""Many devices: the same objective, with the examples of each batch divided over processes.

A script for one process becomes one for many by one argument, and is started by `torchrun`:

    step = fkd.loops.train_step(objective, optimizer, mesh=fkd.parallel.torchrun_mesh())

    torchrun --nproc-per-node 2 script.py

Nothing else changes: every process is given the whole batches, computes its own examples of
them, and the first one writes. `docs/parallel.md` says more.
"""

from ._launch import torchrun_mesh as torchrun_mesh
from ._meta import on_meta as on_meta
from ._world import RankError as RankError
from ._world import in_turn as in_turn

__all__ = ["RankError", "in_turn", "on_meta", "torchrun_mesh"]
