"""Many devices: the same objective, with the examples of each batch divided over processes.

A script for one process becomes one for many by one argument, and is started by `torchrun`:

    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (world_size,))
    step = fkd.loops.train_step(objective, optimizer, mesh=mesh)
"""

from ._world import RankError as RankError
from ._world import in_turn as in_turn

__all__ = ["RankError", "in_turn"]
