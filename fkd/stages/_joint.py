"""One objective of all stages: what the logs, checkpoints and evaluations of the run go by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from torch import Tensor

from fkd._base.errors import expect
from fkd._base.types import Params
from fkd._objective.models import Model, trainable_parameters
from fkd._objective.objective import Objective
from fkd._objective.terms import Term
from fkd.loops import TrainStep

Start: TypeAlias = Callable[[Params], Mapping[str, Mapping[str, Tensor]]]
"""`{model: parameters and buffers}` of the stages before -> those to begin a stage with."""


@dataclass(frozen=True, eq=False)
class Stage:
    """See `stage`, which makes it."""

    step: TrainStep
    steps: int | None = None
    start: Start | None = None


def stage(step: TrainStep, *, steps: int | None = None, start: Start | None = None) -> Stage:
    """One stage of a run.

    Args:
      step: from `train_step`: the objective of the stage, its optimizer, clipping, schedules.
        Schedules count from the first step of the stage; the optimizer begins afresh.
      steps: how many steps it has; None for the last one, which goes on to the end of the run.
      start: called before the first step of the stage with the tensors of all models by name;
        what it returns, `{model: {parameter: tensor}}`, is copied into the models of the stage: a
        small student that begins as layers of the one before it. Models that it does not name
        begin as the stages before have left them.
    """
    expect("stage", "step", step, TrainStep, "a step from train_step")
    return Stage(step, steps, start)


def joint_objective(stages: Mapping[str, Stage]) -> Objective:
    """The terms of all stages, called `stage/term`, over the models of all.

    Raises:
      ValueError: a name stands for two modules.
    """
    terms: dict[str, Term] = {}
    models: dict[str, Model] = {}
    for name, one in stages.items():
        objective = one.step.objective
        objective.raise_problems()
        terms.update({f"{name}/{n}": term for n, term in objective.terms.items()})
        for n, model in objective.models.items():
            models[n] = _both(models[n], model, n, name) if n in models else model
    return Objective(terms, **models)


def _both(before: Model, now: Model, name: str, stage: str) -> Model:
    """A model of two stages: trained where one of them trains it."""
    if before.module is not now.module or before.of != now.of:
        raise ValueError(
            f"stages: {name!r} is another module in stage {stage!r} than before it. Give the same "
            "module to both objectives, which goes on with its parameters; or another name, and "
            "stage(..., start=...) to begin with those of the first."
        )
    if "ema" in (before.kind, now.kind) or before.kind == now.kind == "frozen":
        return now
    trained = {**trainable_parameters(before), **trainable_parameters(now)}
    model = before if before.kind == "trainable" else now
    every = trainable_parameters(replace(model, unused=()))
    return replace(model, unused=tuple(n for n in every if n not in trained))
