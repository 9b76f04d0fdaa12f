"""The mesh of the processes that `torchrun` has started."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


def torchrun_mesh(**axes: int) -> DeviceMesh | None:
    """The mesh of all processes that `torchrun` has started; None in a process of its own.

        step = fkd.loops.train_step(objective, optimizer, mesh=fkd.parallel.torchrun_mesh())

    Joins the process group, if that was not done (NCCL and the GPU of the local rank where there
    are GPUs, else gloo).

    Args:
      axes: names and sizes of the axes, one of which may be -1: what is left. By default one,
        `replicate`. See `train_step` for their meanings.

    Raises:
      ValueError: the sizes do not make up the number of processes.

    Example:
      >>> torchrun_mesh() is None  # one process
      True
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    sizes = _filled(axes or {"replicate": -1}, dist.get_world_size())
    return init_device_mesh(device, tuple(sizes.values()), mesh_dim_names=tuple(sizes))


def _filled(axes: dict[str, int], processes: int) -> dict[str, int]:
    """The axes with their sizes."""
    known = 1
    for size in axes.values():
        known *= size if size > 0 else 1
    free = [name for name, size in axes.items() if size == -1]
    filled = {name: processes // known if size == -1 else size for name, size in axes.items()}
    total = 1
    for size in filled.values():
        total *= size
    if total != processes or len(free) > 1:
        raise ValueError(
            f"torchrun_mesh: the axes {axes} do not make up {processes} processes. The product of "
            "their sizes is the number that torchrun starts; one of them may be -1."
        )
    return filled
