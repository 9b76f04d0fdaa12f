"""What of a run goes into a checkpoint, and what it must match to be resumed."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fkd._objective.objective import Objective
from fkd._objective.terms import Term
from fkd._refs.paths import show
from fkd._types import Params

from .._checkpoint.checkpoint import load, load_latest
from .._errors import CheckpointError, MismatchError
from .._state import State
from .._step.optimizer import Updater
from .._step.train_step import TrainStep


def to_tree(objective: Objective, state: State) -> dict[str, Any]:
    """The state as a tree that can be stored. Frozen models are left out: they are never
    changed, and whoever resumes has them."""
    return {
        "trainable": state.trainable,
        "frozen": _own(objective, state.frozen),
        "buffers": _own(objective, state.buffers),
        "optimizer": {name: dict(held) for name, held in state.optimizer.items()},
        "loss_state": {n: pytree.tree_leaves(s) for n, s in state.loss_state.items()},
        "skipped": state.skipped,
        "step": state.step,
        "seed": state.seed,
    }


def from_tree(objective: Objective, state: State, tree: Mapping[str, Any]) -> State:
    """The stored state, on the devices and in the structure of a fresh one."""
    moved = {
        name: _like(getattr(state, name), tree[name], name)
        for name in ("trainable", "frozen", "buffers")
    }
    device = state.skipped.device
    loss_state = {
        name: pytree.tree_unflatten(
            [_on(x, device) for x in tree["loss_state"][name]], pytree.tree_structure(held)
        )
        for name, held in state.loss_state.items()
    }
    optimizer = {
        name: {k: _placed(v, _parameter(moved["trainable"], name)) for k, v in held.items()}
        for name, held in tree["optimizer"].items()
    }
    return State(
        trainable=moved["trainable"],
        frozen=moved["frozen"],
        buffers=moved["buffers"],
        optimizer=optimizer,
        loss_state=loss_state,
        skipped=tree["skipped"].to(device),
        step=tree["step"],
        seed=tree["seed"],
    )


def fingerprint(step: TrainStep, state: State) -> dict[str, Any]:
    """A description of objective and optimizer; runs with different ones do not mix."""
    objective = step.objective
    optimizer = Updater(step.make_optimizer, state.trainable, {}).optimizer
    names = {id(p): f"{m}.{n}" for m, held in state.trainable.items() for n, p in held.items()}
    groups = [
        {
            **{k: _shown(v) for k, v in g.items() if k not in ("params", "param_names")},
            "params": [names[id(p)] for p in g["params"]],
        }
        for g in optimizer.param_groups
    ]
    return {
        "terms": {name: _term(term) for name, term in objective.terms.items()},
        "models": {name: _described(objective, name) for name in objective.models},
        "optimizer": {"class": type(optimizer).__name__, "groups": groups},
        "step": {
            "accumulate": step.accumulate,
            "autocast": str(step.autocast),
            "clip": step.clip,
            "lr": None if step.lr is None else _shown(step.lr),
        },
    }


def _described(objective: Objective, name: str) -> dict[str, Any]:
    model = objective.program.model(name)
    assert model.module is not None
    parameters = dict(model.module.named_parameters())
    found: dict[str, Any] = {
        "model": repr(objective.models[name]),
        "parameters": {n: f"{tuple(p.shape)} {p.dtype}" for n, p in parameters.items()},
        "unused": list(model.unused),
    }
    if model.kind == "frozen":
        found["values"] = _sample_digest(parameters)
    return found | ({"decay": _shown(model.decay)} if model.kind == "ema" else {})


def _term(term: Term) -> str:
    """A term as code. A 0-d tensor is a knob, whose value may have moved."""
    kwargs = {k: _knob(v) for k, v in term.kwargs.items()}
    shown = replace(term, kwargs=kwargs, weight=_knob(term.weight))
    bound = term.loss
    extra = ""
    if isinstance(bound, functools.partial):
        extra = f" with {show(bound.args)} {show(bound.keywords)}"
    return _ADDRESS.sub("", repr(shown) + extra)


def _knob(value: Any) -> Any:
    return _TENSOR if isinstance(value, Tensor) and value.ndim == 0 else value


class _Tensor:
    def __repr__(self) -> str:
        return "tensor"


_TENSOR = _Tensor()
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def _shown(value: Any) -> str:
    return _ADDRESS.sub("", show(_knob(value)))


def _sample_digest(parameters: Mapping[str, Tensor]) -> str:
    """Of some values of each parameter: whether a frozen model is another than before."""
    sha256 = hashlib.sha256()
    samples: dict[torch.dtype, list[Tensor]] = {}
    for p in parameters.values():
        flat = p.detach().reshape(-1)
        samples.setdefault(p.dtype, []).append(flat[:: max(1, flat.numel() // 16)][:16])
    for held in samples.values():
        joined = torch.cat([x.to(held[0].device) for x in held]).cpu()
        sha256.update(bytes(joined.contiguous().view(torch.uint8).tolist()))
    return sha256.hexdigest()[:16]


def _own(objective: Objective, params: Params) -> dict[str, Any]:
    return {n: dict(held) for n, held in params.items() if objective.models[n].kind != "frozen"}


def _like(fresh: Params, stored: Params, what: str) -> dict[str, dict[str, Tensor]]:
    found = {name: dict(held) for name, held in fresh.items()}
    for name, held in stored.items():
        for key, value in held.items():
            place = found.get(name, {}).get(key)
            if place is None or place.shape != value.shape:
                here = "nothing" if place is None else tuple(place.shape)
                raise MismatchError(
                    f"the checkpoint has {what} {name}.{key} {tuple(value.shape)}, and the "
                    f"objective here has {here} in its place."
                )
            found[name][key] = _placed(value, place)
    return found


def _placed(value: Any, like: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    # A step counter may live on the host beside a parameter on the device.
    return value.to(like.device) if value.ndim or like.device.type == "cpu" else value


def _on(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _parameter(trainable: Params, name: str) -> Tensor:
    model, _, parameter = name.partition(".")
    return trainable[model][parameter]


def restore(step: TrainStep, path: str | os.PathLike[str]) -> State:
    """The state of a checkpoint, without going on with the run.

    Args:
      step: the same objective and optimizer as in the run.
      path: the folder of one checkpoint, or of all of a run (the newest good one is taken).

    Raises:
      CheckpointError: there is none, it is damaged, or it is of another objective.
    """
    fresh = step.init()
    described = fingerprint(step, fresh)
    folder = Path(path)
    if folder.name.startswith("step-"):
        found = load(folder, fingerprint=described)
    else:
        found = load_latest(folder, fingerprint=described)
    if found is None:
        raise CheckpointError(f"restore: there is no checkpoint in {folder}.")
    return from_tree(step.objective, fresh, found.tree["state"])
