"""The mesh of the processes that `torchrun` has started."""

from __future__ import annotations

import datetime
import logging
import os
import re
from typing import Any
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

_log = logging.getLogger("fkd")


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


def can_start_again() -> bool:
    """Whether processes that `torchrun` starts again would look for each other in the store of
    those before them, under the same names."""
    environment = os.environ
    kept = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    restarts = environment.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    return kept and restarts and dist.group.WORLD is not None and dist.group.WORLD not in _joined


def forget_addresses(store: Any) -> None:
    """Delete the addresses by which the processes of a start have found each other, in one of
    them, while all others wait: nobody needs them any more, and those of the next start would
    call there."""
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    if not hasattr(store, "list_keys"):
        _log.warning(
            "the process group was joined by init_process_group, and this version of torch lets "
            "processes that torchrun starts again find the addresses of those before them. Leave "
            "the joining to fkd.parallel.torchrun_mesh()."
        )
        return
    for key in store.list_keys():
        if _ADDRESS.fullmatch(key):
            store.delete_key(key)


_ADDRESS = re.compile(r"default_pg/.*//(cpu|cuda)//.*")
"""What the backends of process groups write into a store: of each process, where it listens."""


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
