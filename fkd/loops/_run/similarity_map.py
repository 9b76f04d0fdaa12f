"""Which layers of student and teacher have become alike: linear CKA on a dev batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fkd._objective.objective import Objective
from fkd._objective.terms import metric
from fkd._refs.refs import output_path, ref

from .._data.batch import leaves, normalised
from .._data.epochs import Loader, epoch_batches
from .._evaluate.similarity import linear_cka
from .._files import replace_file
from .._state import State
from .._step.train_step import TrainStep


def save_similarity(step: TrainStep, state: State, dev: Loader, folder: Path) -> None:
    """Write `similarity.json` for the first dev batch, if the objective compares hidden states
    of a trained model and a teacher."""
    objective = step.objective
    paths = [p for p in map(output_path, objective.refs) if p is not None]
    roots = [root for root, keys in paths if keys[:1] == ("hidden_states",)]
    kinds = {name: objective.models[name].kind for name in roots if name in objective.models}
    students = [n for n, kind in kinds.items() if kind == "trainable"]
    teachers = [n for n, kind in kinds.items() if kind != "trainable"]
    drawn = next(epoch_batches(dev, state.seed, -1), None)
    if not students or not teachers or drawn is None:
        return
    batch = normalised(drawn, state.skipped.device)
    names = [students[0], teachers[0]]
    pair = [ref(name) for name in names]
    everything = metric(_nothing, *(root.hidden_states for root in pair))
    probe = Objective({**objective.terms, "hidden states": everything}, **objective.models)
    with torch.no_grad():
        ctx, _ = probe.evaluating().context(
            state.trainable,
            state.frozen,
            state.buffers,
            batch,
            names=names,
            autocast=step.autocast,
        )
    student, teacher = (list(root.hidden_states(ctx)) for root in pair)
    values = linear_cka(student, teacher, where=_mask(batch, student[0]))
    found = {
        "student_layers": [str(i) for i in range(len(student))],
        "teacher_layers": [str(i) for i in range(len(teacher))],
        "values": values.tolist(),
    }
    replace_file(folder / "similarity.json", json.dumps(found).encode())


def _mask(batch: Any, hidden: Tensor) -> Tensor | None:
    """The attention mask of the batch, if it has one of the states' shape."""
    for place, x in leaves(batch):
        if "attention_mask" in place and x.shape == hidden.shape[:-1]:
            return x.bool().to(hidden.device)
    return None


def _nothing(*values: Any) -> Tensor:
    del values
    return torch.zeros(())
