"""The best student of a run, handed over as files: at every evaluation that is the best so far,
and again when a resumed run finds that a kill came between its checkpoint and its files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from fkd._base.errors import listing
from fkd._objective.objective import Objective

from .._base.errors import CheckpointError
from .._base.state import State
from .._checkpoint.export import export
from .._checkpoint.folder import best
from .._checkpoint.told import tree_of_first
from .options import Options
from .resume import restore
from .run import Run

RECORD = "fkd-best.json"
"""In the folder: of which evaluation of which run its files are."""


def model_to_export(objective: Objective, options: Options) -> str:
    """The model that `export_best` writes: the student, or the only model that is trained.

    Raises:
      ValueError: there are several.
    """
    trained = [name for name, model in objective.models.items() if model.kind == "trainable"]
    if options.export_model is not None:
        if options.export_model not in objective.models:
            raise ValueError(
                f"fit: export_model is {options.export_model!r}, and there is no such model. "
                f"Models: {listing(objective.models)}."
            )
        return options.export_model
    if "student" in trained:
        return "student"
    if len(trained) != 1:
        raise ValueError(
            f"fit: export_best writes one model, and {listing(trained)} are trained. Say which: "
            "export_model='name'."
        )
    return trained[0]


def hand_over(run: Run, state: State) -> None:
    """Write the student of a state, with the record of the run's best evaluation."""
    options = run.options
    if options.export_best is None:
        return
    name = model_to_export(run.step.objective, options)
    record = json.dumps(_record(run), indent=2).encode()
    folder, goal = options.export_best, run.step.objective
    run.world.from_first(lambda: export(goal, state, name, folder, more={RECORD: record}))


def hand_over_again(run: Run) -> None:
    """The same for a run that was resumed, if the folder has not the best of its evaluations."""
    options = run.options
    if options.export_best is None:
        return
    model_to_export(run.step.objective, options)  # a mistake is said before the first step
    if run.at.best_step is None or options.checkpoints is None:
        return
    record = Path(options.export_best) / RECORD
    if tree_of_first(run.world, lambda: _read(record) == _record(run)):
        return
    if run.at.best_step == run.state.step:
        return hand_over(run, run.state)
    folder, higher = options.checkpoints, options.higher
    path = tree_of_first(run.world, lambda: str(best(folder, higher_is_better=higher) or ""))
    if not path:
        raise CheckpointError(
            f"fit: the best evaluation was at step {run.at.best_step}, its student is not in "
            f"{options.export_best}, and its checkpoint is not in {folder}. Begin a "
            "new run, or leave export_best out."
        )
    return hand_over(run, restore(run.step, path))


def _record(run: Run) -> dict[str, object]:
    described = json.dumps(run.fingerprint, sort_keys=True, default=str).encode()
    return {
        "metric": run.options.best,
        "value": run.at.best,
        "step": run.at.best_step,
        "seed": run.state.seed,
        "objective": hashlib.sha256(described).hexdigest(),
    }


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):  # absent, or torn by someone else: it is written again
        return None
