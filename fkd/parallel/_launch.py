"""The mesh of the processes that `torchrun` has started."""

from __future__ import annotations

import datetime
import os
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous


def torchrun_mesh(*, timeout: float | None = None, **axes: int) -> DeviceMesh | None:
    """The mesh of all processes that `torchrun` has started; None in a process of its own.

        step = fkd.loops.train_step(objective, optimizer, mesh=fkd.parallel.torchrun_mesh())

    Joins the process group, if that was not done (NCCL and the GPU of the local rank where there
    are GPUs, else gloo).

    Args:
      timeout: seconds that the processes wait for one of them, wherever they meet (at every step,
        while the first one saves or exports), before they end with its number; by default 1800.
      axes: names and sizes of the axes, one of which may be -1: what is left. By default one,
        `replicate`. See `train_step` for their meanings.

    Raises:
      ValueError: the sizes do not make up the number of processes, the time-out is not above 0,
        or the process group was joined before.

    Example:
      >>> torchrun_mesh() is None  # one process
      True
    """
    if timeout is not None and not timeout > 0:
        raise ValueError(f"torchrun_mesh: timeout is {timeout}; seconds above 0 are expected.")
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        patience = None if timeout is None else datetime.timedelta(seconds=timeout)
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        _join(backend, patience)
    elif timeout is not None and dist.group.WORLD not in _joined:
        raise ValueError(
            "torchrun_mesh: timeout is given, and the process group was joined before. Give it to "
            "init_process_group(..., timeout=), or leave that call out."
        )
    sizes = _filled(axes or {"replicate": -1}, dist.get_world_size())
    return init_device_mesh(device, tuple(sizes.values()), mesh_dim_names=tuple(sizes))


def _join(backend: str, timeout: datetime.timedelta | None) -> None:
    """Join the process group of this start.

    Processes that `torchrun` has started again meet in the store of those before them, and would
    find addresses there at which nobody listens any more (torch 2.13 keeps one store for all
    starts). So each start has names of its own in it.
    """
    store, rank, size = next(iter(rendezvous("env://")))
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"start-{start}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    if dist.group.WORLD is not None:
        _joined.add(dist.group.WORLD)


_joined: WeakSet[dist.ProcessGroup] = WeakSet()
"""The process groups that `torchrun_mesh` has joined."""


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
