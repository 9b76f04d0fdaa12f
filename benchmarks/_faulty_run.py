"""The run that benchmarks of faults kill and start again: two small models, checkpoints, export."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fkd
from fkd import batch, student, teacher, term
from fkd.losses import cross_entropy, kl


def objective(small: nn.Module, large: nn.Module) -> fkd.Objective:
    """A student beside its teacher and labels; both models return logits."""
    return fkd.Objective(
        {
            "kd": term(kl, student.logits, teacher.logits, temperature=2.0),
            "labels": term(cross_entropy, student.logits, batch["y"]),
        },
        student=fkd.trainable(small),
        teacher=fkd.frozen(large),
    )


def train(
    goal: fkd.Objective,
    data: Any,
    run: Path,
    student: Path,
    *,
    pause: float,
    mesh: Any = None,
    **how: Any,
) -> None:
    """Train, with checkpoints in `run`, and export the student.

    Args:
      goal, data: what is trained, on which batches.
      run, student: folders of the run and of the student.
      pause: seconds after each event, so that a kill meets the run at work.
      mesh: of several processes.
      how: further arguments of `fkd.loops.run`.
    """
    step = fkd.loops.train_step(
        goal, lambda p: torch.optim.AdamW(p, lr=1e-2), compile=False, mesh=mesh
    )
    result = fkd.loops.run(
        step,
        step.init(0),
        data,
        checkpoint_dir=run,
        progress=False,
        callbacks=[lambda event: time.sleep(pause)],
        **how,
    )
    fkd.loops.export(goal, result.state, "student", student)
