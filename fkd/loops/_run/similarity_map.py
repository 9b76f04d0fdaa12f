"""Which layers of student and teacher have become alike: linear CKA on a dev batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fkd._refs.refs import output_path, ref

from .._base.files import replace_file
from .._base.state import State
from .._data.batch import leaves, normalised
from .._data.epochs import Loader, epoch_batches
from .._evaluate.score import readable
from .._evaluate.similarity import linear_cka
from .._step.train_step import TrainStep


def save_similarity(step: TrainStep, state: State, dev: Loader, folder: Path) -> None:
    """Write `similarity.json` for the first dev batch, if the objective compares hidden states
    of a trained model and a teacher."""
    objective = readable(step.objective, state)
    paths = [p for p in map(output_path, objective.program.plan.refs) if p is not None]
    roots = [root for root, keys in paths if keys[:1] == ("hidden_states",)]
    kinds = {name: objective.models[name].kind for name in roots if name in objective.models}
    students = [n for n, kind in kinds.items() if kind == "trainable"]
    teachers = [n for n, kind in kinds.items() if kind != "trainable"]
    drawn = next(epoch_batches(dev, state.seed, -1), None)
    if not students or not teachers or drawn is None:
        return
    batch = normalised(drawn, state.skipped.device)
    pair = [ref(students[0]), ref(teachers[0])]
    program = objective.reading({}, [root.hidden_states for root in pair])
    with torch.no_grad():
        forward = program.context(state.parts, batch, autocast=step.autocast)
        student, teacher = (list(root.hidden_states(forward.context)) for root in pair)
    values = linear_cka(student, teacher, where=_mask(batch, student[0]))
    similarities = {
        "student_layers": [str(i) for i in range(len(student))],
        "teacher_layers": [str(i) for i in range(len(teacher))],
        "values": values.tolist(),
    }
    if step.world.first:
        replace_file(folder / "similarity.json", json.dumps(similarities).encode())


def _mask(batch: Any, hidden: Tensor) -> Tensor | None:
    """The attention mask of the batch, if it has one of the states' shape."""
    for place, x in leaves(batch):
        if "attention_mask" in place and x.shape == hidden.shape[:-1]:
            return x.bool().to(hidden.device)
    return None
