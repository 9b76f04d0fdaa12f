"""Runs of several processes: what they leave on the disk, and what one process leaves there."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

import fkd
from fkd import batch, ref, student, teacher, term
from fkd.loops import BucketBatchSampler, TrainStep, fit, train_step
from fkd.loops._base.errors import CheckpointError, LoopError
from fkd.loops._checkpoint import checkpoint, parts
from fkd.loops._evaluate import score as score_module
from fkd.losses import kl, mse
from fkd.parallel import RankError, _shards, _world
from tests.parallel.cases import adamw, digest
from tests.parallel.objectives import CLASSES, FEATURES, Net, centred, differences, plain

EXAMPLES = 30


def rows() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        {
            "x": torch.randn(FEATURES, generator=generator),
            "ok": torch.rand((), generator=generator) > 0.3,
            "y": torch.randint(CLASSES, (), generator=generator),
            "index": torch.tensor(i),
        }
        for i in range(EXAMPLES)
    ]


class Rows(torch.utils.data.Dataset[Any]):
    """Examples with augmentation from the global generators."""

    def __init__(self) -> None:
        self.rows = rows()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        row = self.rows[index]
        return {**row, "x": row["x"] + 0.1 * torch.randn(FEATURES)}


def shuffled() -> DataLoader[Any]:
    return DataLoader(Rows(), batch_size=4, shuffle=True)


def bucketed() -> DataLoader[Any]:
    lengths = [1 + i % 7 for i in range(EXAMPLES)]
    return DataLoader(Rows(), batch_sampler=BucketBatchSampler(lengths, batch_size=4, buckets=2))


METRICS = {
    "accuracy": fkd.metric(fkd.metrics.accuracy, student.logits, batch["y"]),
    "order": fkd.loops.collect(
        lambda index: sum((i + 1) * int(x) for i, x in enumerate(torch.cat(index))), batch["index"]
    ),
}


def step_of(mesh: DeviceMesh | None) -> TrainStep:
    return train_step(plain(norm=True), adamw, compile=False, mesh=mesh)


def run(mesh: DeviceMesh | None, folder: str, loader: Any, **options: Any) -> dict[str, Any]:
    """A run with everything that writes; what is left, in JSON."""
    step = step_of(mesh)
    events, state, values = [], step.init(0), []
    given = {"epochs": 2, "dev": shuffled(), "metrics": METRICS, "best": "accuracy", "log_every": 3}
    given |= {"log_dir": folder, **options}
    for event in fit(
        step,
        state,
        loader,
        checkpoint_dir=folder,
        progress=False,
        tensorboard=False,
        **given,
    ):
        events.append([event.kind, event.step])
        state = event.state
        if event.kind == "evaluate":
            values.append(event.values)
    exported = fkd.loops.export(step.objective, state, "student", f"{folder}/out")
    if given["log_dir"]:
        fkd.loops.report(folder)
    whole = {
        n: x.full_tensor() if isinstance(x, DTensor) else x
        for n, x in state.trainable["student"].items()
    }
    return {
        "events": events,
        "values": values,
        "digest": digest(state),
        "exported": differences(
            dict(exported.named_parameters()),
            whole,
        ),
        "parameters": [x.flatten()[:3].tolist() for x in whole.values()],
        "step": state.step,
    }


def runs(mesh: DeviceMesh, folder: str) -> dict[str, Any]:
    return {
        "shuffled": run(mesh, f"{folder}/shuffled", shuffled()),
        "bucketed": run(mesh, f"{folder}/bucketed", bucketed()),
        "list": run(mesh, f"{folder}/list", list(shuffled())),
    }


def first_part(mesh: DeviceMesh, folder: str) -> Any:
    return run(mesh, folder, shuffled(), steps=6)


def second_part(mesh: DeviceMesh, folder: str) -> Any:
    return run(mesh, folder, shuffled())


def sharded_part(mesh: DeviceMesh, folder: str, steps: int, fault: str = "") -> Any:
    """The same with parameters of which every process has some rows.

    Args:
      fault: "apart": rank 1 does not find the folder of rank 0; "full": its disk is full from the
        second checkpoint on; "first": so is that of rank 0; "killed": rank 1 is killed while it
        writes the second one. With "async" in it, parts are written beside the steps.
    """
    _shards.SMALLEST = 8
    beside, fault = "async" in fault, fault.removeprefix("async").strip()
    if fault and mesh.get_rank() == (fault != "first"):
        _break(fault)
    cut, seen = init_device_mesh("cpu", (mesh.size(),), mesh_dim_names=("shard",)), list[int]()
    try:
        return run(
            cut, folder, shuffled(), steps=steps, save_every=3, save_async=beside, **SAVES,
            callbacks=[lambda event: seen.append(event.step)],
        )  # fmt: skip
    except (CheckpointError, LoopError, RankError) as error:
        return {"type": type(error).__name__, "message": str(error), "step": seen[-1]}


SAVES: dict[str, Any] = {"dev": None, "metrics": {}, "best": "loss/total", "log_dir": None}
"""Of a run that writes checkpoints and nothing else."""


def _break(fault: str) -> None:
    write, written = parts.write_file, list[Path]()

    def full(path: Path, chunks: Any) -> Any:
        if path.suffix == ".safetensors":
            written.append(path)
        if len(written) > 1 and fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if len(written) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, chunks)

    if fault in ("full", "killed"):
        parts.write_file = full
    elif fault == "first":
        checkpoint.write_file = full
    else:
        parts.Path = lambda text: Path("/nonexistent")  # pyright: ignore[reportAttributeAccessIssue]


def staged(mesh: DeviceMesh | None, folder: str, axis: str, steps: int = 8) -> Any:
    """Two stages, of which the second freezes what the first has trained; whole parameters."""
    torch.manual_seed(0)
    net, hint, large = Net(8, False), nn.Linear(8, 12), Net(12, False)
    first = fkd.Objective(
        {"hint": term(mse, fkd.module("hint")(student.hidden), teacher.hidden, where=batch["ok"]),
         "centred": term(centred, student.hidden, state=torch.zeros(8))},
        student=fkd.trainable(net, unused=["head"]), hint=fkd.trainable(hint),
        teacher=fkd.frozen(large),
    )  # fmt: skip
    second = fkd.Objective(
        {"kd": term(kl, student.logits, teacher.logits),
         "slow": term(mse, student.logits, ref("slow").logits)},
        student=fkd.trainable(net), teacher=fkd.frozen(large), slow=fkd.ema("student", decay=0.9),
    )  # fmt: skip
    _shards.SMALLEST = 8
    if mesh is not None:
        mesh = init_device_mesh("cpu", (mesh.size(),), mesh_dim_names=(axis,))
    steps_of = [train_step(one, adamw, compile=False, mesh=mesh) for one in (first, second)]
    step = fkd.stages.stages(
        {
            "hint": fkd.stages.stage(steps_of[0], steps=4),
            "logits": fkd.stages.stage(
                steps_of[1], start=lambda now: {"student": {"head.bias": now["hint"]["bias"][:4]}}
            ),
        }
    )
    result = fkd.loops.run(
        step, step.init(0), shuffled(), steps=steps, checkpoint_dir=folder, save_every=3,
        progress=False,
    )  # fmt: skip
    every = {**result.state.trainable, **result.state.frozen}
    return {
        m: {n: _whole(x).tolist() for n, x in held.items()} for m, held in sorted(every.items())
    }


def _whole(x: Tensor) -> Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x


def measured(mesh: DeviceMesh | None, axis: str) -> Any:
    """What `evaluate` and `score` say, and how many batches a process has computed."""
    _shards.SMALLEST = 8
    if mesh is not None:
        mesh = init_device_mesh("cpu", (mesh.size(),), mesh_dim_names=(axis,))
    step = train_step(plain(norm=True), adamw, compile=False, mesh=mesh)
    state, objective = step.init(0), step.objective
    calls: list[int] = []
    original = score_module.Forward._result

    def counted(self: Any, *args: Any) -> Any:
        calls.append(1)
        return original(self, *args)

    score_module.Forward._result = counted
    values = fkd.loops.evaluate(objective, state, shuffled(), metrics=METRICS, mesh=mesh)
    seen = len(calls)
    wanted = {"logits": student.logits, "kd": objective.terms["kd"]}
    scored = fkd.loops.score(objective, state, shuffled(), wanted, mesh=mesh)
    logits = [[one["logits"].tolist(), one["kd"].tolist()] for one in scored]
    return {"values": values, "scored": logits, "calls": seen}


def refused(mesh: DeviceMesh) -> Any:
    """What each process is told where rank 1 has other batches, fewer, none, or fails; and where
    stages are on several meshes."""
    objective = plain()
    step = train_step(objective, adamw, compile=False, mesh=mesh)
    state, second = step.init(0), mesh.get_rank() == 1

    def failing_loader() -> Iterator[Any]:
        yield from list(shuffled())[:3]
        if second:
            raise OSError("the disk of rank 1 is gone")

    def failing_metric(ctx: Any) -> Tensor:
        if second:
            raise KeyError("a metric of rank 1")
        return ctx["batch"]["y"]

    def scored(loader: Any) -> None:
        list(fkd.loops.score(objective, state, loader, {"logits": student.logits}, mesh=mesh))

    def evaluated(loader: Any, metric: Any = None) -> None:
        metrics = {} if metric is None else {"metric": metric}
        fkd.loops.evaluate(objective, state, loader, metrics=metrics, mesh=mesh)

    torch.manual_seed(0)
    same = list(shuffled())
    alone = train_step(plain(), adamw, compile=False)
    trials: dict[str, Any] = {
        "other": lambda: evaluated([{**b, "x": b["x"] + second} for b in same]),
        "fewer": lambda: scored(same[: 7 - second]),
        "none": lambda: evaluated([]),
        "loader": lambda: scored(lambda seed: failing_loader()),
        "metric": lambda: evaluated(same, failing_metric),
        "stages": lambda: fkd.stages.stages(
            {"a": fkd.stages.stage(step, steps=2), "b": fkd.stages.stage(alone)}
        ),
    }
    told = {}
    for name, trial in trials.items():
        try:
            trial()
            told[name] = "nothing"
        except Exception as error:
            told[name] = f"{type(error).__name__}: {error}"
    return told


def host_groups(mesh: DeviceMesh) -> Any:
    """Whether two steps use one group on the host where the default group is on the devices, and
    what its processes tell each other."""
    _world._on_host = lambda group: False
    one, other = _world.world_of(mesh), _world.world_of(mesh)
    return [one.group is other.group, one.group is mesh.get_group(), one.exchanged(one.rank)]


def failing(mesh: DeviceMesh, folder: str, where: str) -> Any:
    """What each process raises when rank 1 alone (or rank 0, with its disk) fails."""
    rank = mesh.get_rank()

    def wrong_loader() -> Iterator[Any]:
        for i, made in enumerate(shuffled()):
            if i == 2 and rank == 1 and where == "loader":
                raise OSError("the disk of rank 1 is gone")
            if i == 3 and rank == 1 and where == "data":
                made = {**made, "x": made["x"] + 1}
            if i == 3 and rank == 1 and where == "short":
                return
            yield made

    def callback(event: Any) -> None:
        if where == "callback" and rank == 1 and event.kind == "log":
            raise KeyError("a callback of rank 1")

    def written(step: int, values: Any) -> None:
        if where == "signal" and step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    folder = "/proc/none" if where == "disk" else folder
    try:
        run(
            mesh,
            folder,
            lambda seed: wrong_loader(),
            callbacks=[callback],
            loggers=[written],
        )
    except BaseException as error:
        saved = sorted(p.name for p in Path(folder).glob("step-*"))
        return {
            "type": type(error).__name__,
            "message": str(error),
            "known": isinstance(error, RankError),
            "saved": saved,
        }
    return {"type": "none", "message": json.dumps(where), "known": False, "saved": []}
