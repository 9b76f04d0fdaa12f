"""A step over several processes against one process: models and objectives of every kind.

    torchrun --nproc-per-node 3 benchmarks/parallel_matrix.py
    torchrun --nproc-per-node 2 benchmarks/parallel_matrix.py --axis shard --graph --case llama

Every process takes the same steps twice: alone on the whole batches, and as one of several. A row
says how far apart metrics, parameters, buffers and states are in the end (relative to the largest
number of each tensor), and whether all processes have the same bits. The command fails if a case
does.
"""

from __future__ import annotations

import argparse
import time
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import optree
import torch
import torch.distributed as dist
from parallel_cases import CASES, Case
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

import fkd
from fkd.loops import State, train_step
from fkd.parallel import _shards

TOLERANCE = 2e-5


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)


def gaps(one: Any, other: Any) -> float:
    """The largest difference of two trees, relative to the largest number of each tensor."""
    worst = 0.0
    first, second = optree.tree_leaves(one), optree.tree_leaves(other)
    assert len(first) == len(second), (len(first), len(second))
    for a, b in zip(first, second, strict=True):
        if not isinstance(a, Tensor) or not a.numel():
            continue
        b = (b.full_tensor() if isinstance(b, DTensor) else b).double()
        a = a.double()
        gap = torch.where(a == b, torch.zeros_like(a), (a - b).abs())
        gap[a.isnan() & b.isnan()] = 0
        size = a[a.isfinite()].abs().max().clamp(min=1e-2) if a.isfinite().any() else 1.0
        worst = max(worst, float((gap / size).max()))
        if not gap.isfinite().all():
            return float("nan")
    return worst


def same_bits(state: State) -> bool:
    """Whether all processes have the same numbers in what each of them has whole."""
    trees = (state.trainable, state.frozen, state.buffers, state.loss_state)
    leaves: list[Any] = [x for tree in trees for x in optree.tree_leaves(tree)]  # pyright: ignore
    whole = [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, DTensor)]
    total = torch.stack([x.double().nan_to_num(0.5).sum() for x in whole] or [torch.zeros(())])
    every = [torch.zeros_like(total) for _ in range(dist.get_world_size())]
    dist.all_gather(every, total)
    return all(torch.equal(x, every[0]) for x in every)


def run(case: Case, mesh: DeviceMesh, compile: Any) -> tuple[dict[str, float], bool, int]:
    """The steps of a case, alone and together."""
    options = {"clip": 0.5, **case.options}
    optimizer = options.pop("optimizer", sgd)
    torch.manual_seed(0)
    objective = case.objective()
    one = train_step(objective, optimizer, compile=False, **options)
    many = train_step(objective, optimizer, compile=compile, mesh=mesh, **options)
    alone, together = one.init(0), many.init(0)
    metrics = 0.0
    for batch in case.batches():
        alone, measured = one(alone, batch)
        together, others = many(together, batch)
        assert list(measured) == list(others), (list(measured), list(others))
        each = {name: gaps(measured[name], others[name]) for name in measured}
        metrics = max(metrics, *each.values())
        if max(each.values()) > case.tolerance and mesh.get_rank() == 0:
            print({name: gap for name, gap in each.items() if gap > case.tolerance})
    found = {"metrics": metrics, "parameters": gaps(alone.trainable, together.trainable)}
    found["frozen"] = gaps(alone.frozen, together.frozen)
    found["buffers"] = gaps(alone.buffers, together.buffers)
    found["state"] = gaps(alone.loss_state, together.loss_state)
    found["combine"] = gaps(alone.combine_state, together.combine_state)
    return found, same_bits(together), many.compilations


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--axis", default="replicate", choices=("replicate", "shard"))
    parser.add_argument("--graph", action="store_true", help="fullgraph, without Inductor")
    parser.add_argument("--case", action="append", help="only those whose names begin so")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    mesh = fkd.parallel.torchrun_mesh(**{args.axis: -1})
    if mesh is None:
        raise SystemExit("error: start it with torchrun --nproc-per-node 2.")
    _shards.SMALLEST = 16
    compile: Any = {"backend": "aot_eager"} if args.graph else False
    first = mesh.get_rank() == 0
    failed: list[str] = []
    for name, case in CASES.items():
        if args.case and not any(name.startswith(prefix) for prefix in args.case):
            continue
        if args.axis in case.without or (args.graph and "graph" in case.without):
            continue
        began = time.perf_counter()
        try:
            found, same, shapes = run(case, mesh, compile)
        except Exception:
            print(f"| {name} | rank {mesh.get_rank()} FAILED |", traceback.format_exc(), flush=True)
            failed.append(name)
            continue
        good = same and all(gap <= case.tolerance for gap in found.values())
        failed += [] if good else [name]
        if first:
            shown = " | ".join(f"{gap:.0e}" for gap in found.values())
            bits = "same" if same else "DIFFER"
            word = "" if good else " FAILED"
            seconds = time.perf_counter() - began
            print(f"| {name} | {shown} | {bits} | {shapes} | {seconds:.1f} s{word} |", flush=True)
    dist.barrier()
    dist.destroy_process_group()
    if failed and first:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
