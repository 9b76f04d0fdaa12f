"""What a step over ranks gives, beside what one process gives on the same batches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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
from tests.parallel.processes import in_processes

GRAPH = {"backend": "aot_eager"}


def adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=1e-2)


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


@dataclass(frozen=True)
class Case:
    """An objective, its batches, and how it is trained.

    Attributes:
      make: the objective.
      size, bad: of `batches`.
      sharded: whether each rank has some rows of the parameters.
      fresh: whether its steps are made anew, and not those that other cases have used.
    """

    make: Callable[[], fkd.Objective]
    size: int
    bad: int | None = None
    optimizer: Any = adamw
    accumulate: int = 1
    sharded: bool = False
    compile: bool = False
    fresh: bool = False

    def step(self, mesh: DeviceMesh | None) -> TrainStep:
        """The step of one process, or of those of a mesh."""
        _shards.SMALLEST = 8
        graph = GRAPH if self.compile and mesh is not None else False
        over = cut(mesh) if self.sharded and mesh is not None else mesh
        key = self.make, self.optimizer, self.accumulate, self.sharded, self.compile, mesh is None
        if self.fresh or key not in _steps:
            _steps[key] = train_step(
                self.make(), self.optimizer, compile=graph, clip=1.0, mesh=over,
                accumulate=self.accumulate,
            )  # fmt: skip
        return _steps[key]

    def trained(self, step: TrainStep) -> tuple[State, list[dict[str, Tensor]]]:
        """The state after all batches, and the metrics of each."""
        state, every = step.init(0), []
        for batch in batches(self.size, bad=self.bad):
            state, metrics = step(state, batch)
            every.append(dict(metrics))
        return state, every


_steps: dict[Any, TrainStep] = {}
"""Steps that several cases use, each with a state of its own."""
_mesh: list[DeviceMesh] = []


def cut(mesh: DeviceMesh) -> DeviceMesh:
    """A mesh of the same ranks along which parameters are cut, twice where there are four."""
    if not _mesh:
        names = ("replicate", "shard") if mesh.size() == 4 else ("shard",)
        sizes = (2, 2) if mesh.size() == 4 else (mesh.size(),)
        _mesh.append(init_device_mesh("cpu", sizes, mesh_dim_names=names))
    return _mesh[0]


@functools.cache
def alone(case: Case) -> tuple[State, list[dict[str, Tensor]]]:
    """What one process has after the batches of a case, however the ranks share them."""
    return case.trained(case.step(None))


def compared(mesh: DeviceMesh, case: Case, one: Any) -> dict[str, Any]:
    """One process against all of the mesh: the largest differences in everything that stays."""
    state, metrics = one
    step = case.step(mesh)
    other, measured = case.trained(step)
    gaps = []
    for mine, theirs in zip(metrics, measured, strict=True):
        assert mine.keys() == theirs.keys()
        gaps.append(differences(mine, theirs))
    return {
        "metrics": max(gaps),
        "trainable": differences(state.trainable, whole(other.trainable)),
        "frozen": differences(state.frozen, whole(other.frozen)),
        "moments": differences(dict(state.optimizer), dict(stored(step, other).optimizer)),
        "held": sum(x.numel() for x in local(other)) / sum(x.numel() for x in local(state)),
        "buffers": differences(state.buffers, other.buffers),
        "loss_state": differences(state.loss_state, other.loss_state),
        "skipped": [int(state.skipped), int(other.skipped)],
        "digest": digest(other),
        "compilations": step.compilations,
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


CASES: dict[str, Case] = {
    "plain": Case(objectives.plain, 12),
    "ragged": Case(objectives.plain, 13),
    "fewer examples than ranks": Case(objectives.plain, 1, fresh=True),
    "a rank without examples": Case(objectives.normed, 2, optimizer=sgd),
    "accumulated": Case(objectives.plain, 13, accumulate=2),
    "nan on one rank": Case(objectives.plain, 12, bad=2),
    "batch statistics": Case(objectives.normed, 13, optimizer=sgd),
    "batch statistics with nan": Case(objectives.normed, 13, bad=1, optimizer=sgd),
    "other buffers": Case(objectives.buffered, 13),
    "recomputed": Case(objectives.recomputed, 13, optimizer=sgd),
    "related, few": Case(objectives.related, 4, optimizer=sgd),
    "related": Case(objectives.related, 13, optimizer=sgd),
    "related, accumulated": Case(objectives.related, 12, accumulate=2, optimizer=sgd),
}
SHARDED: dict[str, Case] = {
    "plain": Case(objectives.plain, 13),
    "accumulated": Case(objectives.plain, 13, accumulate=2),
    "nan on one rank": Case(objectives.normed, 12, bad=2, optimizer=sgd),
    "recomputed": Case(objectives.recomputed, 13, optimizer=sgd),
    "related": Case(objectives.related, 13, optimizer=sgd),
    "tied, taps and refs": Case(objectives.tied, 13, optimizer=sgd),
}
COMPILED: dict[str, Case] = {
    "sharded, one graph": Case(objectives.tied, 13, optimizer=sgd, compile=True, sharded=True),
    "several, accumulated, in graphs": Case(
        objectives.several, 13, optimizer=sgd, compile=True, accumulate=2
    ),
}
HALVED = {f"sharded: {name}": replace(case, sharded=True) for name, case in SHARDED.items()}


def all_of(mesh: DeviceMesh, cases: Mapping[str, Case], references: Mapping[str, Any]) -> Any:
    """The cases in these processes, beside what one process gave."""
    told = {}
    for name, case in cases.items():
        told[name] = compared(mesh, case, references[name])
        dist.barrier()
    return told


def in_ranks(count: int, cases: Mapping[str, Case]) -> list[Any]:
    """The same, in so many processes. What one process gives is computed before they are forked,
    once for cases that differ only in what the ranks share."""
    one = {n: alone(replace(case, sharded=False, compile=False)) for n, case in cases.items()}
    return in_processes(count, all_of, cases, one)
