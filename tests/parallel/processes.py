"""Several processes that train together, forked from this one, on gloo."""

from __future__ import annotations

import contextlib
import datetime
import json
import multiprocessing
import os
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

fork = multiprocessing.get_context("fork")
SECONDS = 120


def in_processes(
    count: int, fn: Callable[..., Any], *args: Any, timeout: float = SECONDS, join: bool = True
) -> list[Any]:
    """What `fn(mesh, *args)` returns in each of `count` processes; JSON.

    An error in one of them is raised here, with its traceback.

    Args:
      join: whether they join a process group; else `fn` does, and its mesh is None.
    """
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder) / f"{rank}.json" for rank in range(count)]
        store = Path(folder) / "store" if join else None
        workers = [
            fork.Process(
                target=_work,
                args=(rank, count, store, said[rank], timeout, fn, args),
            )
            for rank in range(count)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(timeout + 60)
        late = [worker for worker in workers if worker.is_alive()]
        for worker in late:
            worker.kill()
        told = [json.loads(path.read_text()) if path.exists() else None for path in said]
    errors = [text["error"] for text in told if text is not None and "error" in text]
    if errors or late or None in told:
        raise AssertionError("\n".join(errors) or f"ended with {[w.exitcode for w in workers]}")
    return [text["value"] for text in told]


def mesh_of(count: int, name: str = "replicate") -> DeviceMesh:
    return init_device_mesh("cpu", (count,), mesh_dim_names=(name,))


def _work(
    rank: int,
    count: int,
    store: Path | None,
    said: Path,
    timeout: float,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", ".*should not be instantiated")  # by the compiler itself
    try:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank))
        if store is not None:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{store}",
                rank=rank,
                world_size=count,
                timeout=datetime.timedelta(seconds=timeout),
            )
        value = fn(mesh_of(count) if store is not None else None, *args)
        said.write_text(json.dumps({"value": value}))
        with contextlib.suppress(RuntimeError):  # a test may have broken the group
            dist.barrier()
            dist.destroy_process_group()
    except BaseException:
        said.write_text(json.dumps({"error": f"rank {rank}:\n{traceback.format_exc()}"}))
        os._exit(1)
    os._exit(0)
