"""Runs of which one process sleeps, in its loader or in a step, longer than the others wait."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

import fkd
from fkd import batch, student, teacher, term
from fkd.loops import train_step
from fkd.losses import mse
from fkd.parallel import RankError, _blame
from tests.parallel.cases import adamw, digest
from tests.parallel.objectives import Net
from tests.parallel.runs import shuffled

TIMEOUT = 1.5


def hanging(mesh: DeviceMesh, folder: str, where: str, seconds: float) -> Any:
    """What each process says when the last one sleeps at its fifth batch.

    Args:
      where: "loader", "step", or "" (nothing hangs).
      seconds: how long it sleeps.
    """
    _blame.PATIENCE, _blame.PROMPT = 2.0, 0.5
    dist.distributed_c10d._set_pg_timeout(  # pyright: ignore
        datetime.timedelta(seconds=TIMEOUT if where else 60), mesh.get_group()
    )
    sleeps, calls = mesh.get_rank() == mesh.size() - 1, 0

    def loader(seed: int) -> Iterator[Any]:
        for i, drawn in enumerate(shuffled()):
            if sleeps and where == "loader" and i == 4:
                time.sleep(seconds)
            yield drawn

    def loss(x: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += step.world.size > 1 and x.device.type == "cpu" and bool(taken)
        if sleeps and where == "step" and calls == 5:
            time.sleep(seconds)
        return mse(x, y)

    taken: list[int] = []
    objective = fkd.Objective(
        {"kd": term(loss, student.logits, teacher.logits, where=batch["ok"])},
        student=fkd.trainable(Net(8, False)),
        teacher=fkd.frozen(Net(8, False)),
    )
    step = train_step(objective, adamw, compile=False, mesh=mesh)
    try:
        result = fkd.loops.run(
            step, step.init(0), loader, epochs=1, checkpoint_dir=folder, save_every=2,
            progress=False, callbacks=[lambda event: taken.append(event.step)],
        )  # fmt: skip
    except Exception as error:
        known = isinstance(error, RankError) or isinstance(error.__cause__, RankError)
        return {"message": str(error), "known": known}
    return {"digest": digest(result.state), "step": result.state.step}
