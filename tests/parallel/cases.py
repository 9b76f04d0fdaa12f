"""What a step over ranks gives, beside what one process gives on the same batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

import fkd
from fkd.loops import State, TrainStep, train_step
from fkd.loops._base.digest import digest_of
from fkd.parallel import _shards
from tests.parallel import objectives
from tests.parallel.objectives import batches, differences

GRAPH = {"backend": "aot_eager"}


def adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=1e-2)


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


def compared(
    mesh: DeviceMesh,
    make: Callable[[], fkd.Objective],
    data: Sequence[Mapping[str, Tensor]],
    *,
    compile: Any = False,
    optimizer: Any = adamw,
    **options: Any,
) -> dict[str, Any]:
    """One process against all of the mesh: the largest differences in everything that stays."""
    one = train_step(make(), optimizer, compile=False, clip=1.0, **options)
    many = train_step(make(), optimizer, compile=compile, clip=1.0, mesh=mesh, **options)
    state, other = one.init(0), many.init(0)
    gaps = []
    for batch in data:
        state, metrics = one(state, batch)
        other, measured = many(other, batch)
        assert metrics.keys() == measured.keys()
        gaps.append(differences(dict(metrics), dict(measured)))
    return {
        "metrics": max(gaps),
        "trainable": differences(state.trainable, whole(other.trainable)),
        "frozen": differences(state.frozen, whole(other.frozen)),
        "moments": differences(dict(state.optimizer), dict(stored(many, other).optimizer)),
        "held": sum(x.numel() for x in local(other)) / sum(x.numel() for x in local(state)),
        "buffers": differences(state.buffers, other.buffers),
        "loss_state": differences(state.loss_state, other.loss_state),
        "skipped": [int(state.skipped), int(other.skipped)],
        "digest": digest(other),
        "compilations": many.compilations,
    }


def whole(tree: Any) -> dict[str, dict[str, Tensor]]:
    return {
        m: {n: x.full_tensor() if isinstance(x, DTensor) else x for n, x in held.items()}
        for m, held in tree.items()
    }


def stored(step: TrainStep, state: State) -> State:
    """As the first process stores it, in all of them."""
    if step.together is None or step.together.cutting is None:
        return state
    first, step.world.rank = step.world.rank, 0
    try:
        return step.whole(state)
    finally:
        step.world.rank = first


def local(state: State) -> list[Tensor]:
    trees = (state.trainable, state.frozen)
    held = [x for tree in trees for tensors in tree.values() for x in tensors.values()]
    moments = [x for values in state.optimizer.values() for x in values.values()]
    return [
        x.to_local() if isinstance(x, DTensor) else x
        for x in (*held, *moments)
        if isinstance(x, Tensor)
    ]


def digest(state: State) -> str:
    """Of all bits of a state, which have to be the same on all ranks."""
    cut = any(isinstance(x, DTensor) for held in state.trainable.values() for x in held.values())
    trees = {"t": whole(state.trainable), "f": whole(state.frozen), "b": state.buffers}
    trees |= {} if cut else {"o": state.optimizer}
    tensors = [
        (f"{t}.{m}.{n}", x)
        for t, tree in trees.items()
        for m, held in tree.items()
        for n, x in held.items()
        if isinstance(x, Tensor)
    ]
    states = [(n, x) for n, x in state.loss_state.items() if isinstance(x, Tensor)]
    return digest_of([*tensors, *states])


CASES: dict[str, Callable[[DeviceMesh], Any]] = {
    "plain": lambda mesh: compared(mesh, objectives.plain, batches(12)),
    "ragged": lambda mesh: compared(mesh, objectives.plain, batches(13)),
    "fewer examples than ranks": lambda mesh: compared(mesh, objectives.plain, batches(1)),
    "a rank without examples": lambda mesh: compared(
        mesh, lambda: objectives.plain(norm=True), batches(2), optimizer=sgd
    ),
    "accumulated": lambda mesh: compared(mesh, objectives.plain, batches(13), accumulate=2),
    "nan on one rank": lambda mesh: compared(mesh, objectives.plain, batches(12, bad=2)),
    "batch statistics": lambda mesh: compared(
        mesh, lambda: objectives.plain(norm=True), batches(13), optimizer=sgd
    ),
    "batch statistics with nan": lambda mesh: compared(
        mesh, lambda: objectives.plain(norm=True), batches(13, bad=1), optimizer=sgd
    ),
    "other buffers": lambda mesh: compared(mesh, objectives.buffered, batches(13)),
    "recomputed": lambda mesh: compared(mesh, objectives.recomputed, batches(13), optimizer=sgd),
    "related": lambda mesh: compared(mesh, objectives.related, batches(13), optimizer=sgd),
    "related, few": lambda mesh: compared(mesh, objectives.related, batches(4), optimizer=sgd),
    "related, accumulated": lambda mesh: compared(
        mesh, objectives.related, batches(12), accumulate=2, optimizer=sgd
    ),
}


def sharded(mesh: DeviceMesh, make: Callable[[], fkd.Objective], *args: Any, **options: Any) -> Any:
    """The same with parameters of which every rank has some rows."""
    _shards.SMALLEST = 8
    names = ("replicate", "shard") if mesh.size() == 4 else ("shard",)
    sizes = (2, 2) if mesh.size() == 4 else (mesh.size(),)
    cut = init_device_mesh("cpu", sizes, mesh_dim_names=names)
    return compared(cut, make, *args, **options)


SHARDED: dict[str, Callable[[DeviceMesh], Any]] = {
    "plain": lambda mesh: sharded(mesh, objectives.plain, batches(13)),
    "accumulated": lambda mesh: sharded(mesh, objectives.plain, batches(13), accumulate=2),
    "nan on one rank": lambda mesh: sharded(
        mesh, lambda: objectives.plain(norm=True), batches(12, bad=2), optimizer=sgd
    ),
    "recomputed": lambda mesh: sharded(mesh, objectives.recomputed, batches(13), optimizer=sgd),
    "related": lambda mesh: sharded(mesh, objectives.related, batches(13), optimizer=sgd),
    "tied, taps and refs": lambda mesh: sharded(mesh, objectives.tied, batches(13), optimizer=sgd),
}
COMPILED: dict[str, Callable[[DeviceMesh], Any]] = {
    "sharded, one graph": lambda mesh: sharded(
        mesh, objectives.tied, batches(13), compile=GRAPH, optimizer=sgd
    ),
    "plain, one graph": lambda mesh: compared(
        mesh, lambda: objectives.plain(norm=True), batches(13), compile=GRAPH, optimizer=sgd
    ),
    "related, one graph": lambda mesh: compared(
        mesh, objectives.related, batches(13), compile=GRAPH, optimizer=sgd
    ),
    "accumulated, one graph": lambda mesh: compared(
        mesh, objectives.plain, batches(13), compile=GRAPH, accumulate=2
    ),
}
HALVED = {f"sharded: {name}": case for name, case in SHARDED.items()}


def all_of(mesh: DeviceMesh, names: Sequence[str]) -> dict[str, Any]:
    """The cases of these names, in these processes."""
    told = {}
    for name in names:
        told[name] = {**CASES, **COMPILED, **HALVED}[name](mesh)
        dist.barrier()
    return told
