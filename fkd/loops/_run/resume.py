"""What of a run goes into a checkpoint, and what it must match to be resumed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

import optree
import torch
from torch import Tensor

from fkd._base.types import Params
from fkd._objective.objective import Objective
from fkd.parallel._shards import cut_like, is_cut, local, rows_like

from .._base.errors import CheckpointError, DamagedError, MismatchError
from .._base.state import State
from .._checkpoint.checkpoint import Checkpoint, load, load_latest
from .._checkpoint.folder import is_checkpoint
from .._checkpoint.parts import read_in_parts
from .._checkpoint.places import Places
from .._checkpoint.schema import COUNT, INTEGER, NUMBER, Each, Of, maybe, validate
from .._checkpoint.told import tree_of_first
from .._step.train_step import TrainStep
from .fingerprint import fingerprint, only_if

T = TypeVar("T")

_ANY = Of("a value", lambda x: True)
_TENSOR = Of("a tensor", lambda x: isinstance(x, Tensor))
_SCALAR = Of("a tensor without axes", lambda x: isinstance(x, Tensor) and x.ndim == 0)
_STATE = {
    "trainable": Each(Each(_TENSOR)),
    "frozen": Each(Each(_TENSOR)),
    "buffers": Each(Each(_TENSOR)),
    "optimizer": Each(Each(_ANY)),
    "loss_state": Each([_ANY]),
    "skipped": _SCALAR,
    "step": COUNT,
    "seed": INTEGER,
    "combine_state?": [_TENSOR],
    "loss_scale?": {"factor": _SCALAR, "finite_steps": _SCALAR},
}
_FIELDS = {int: COUNT, int | None: maybe(COUNT), float | None: maybe(NUMBER)}


def to_tree(objective: Objective, state: State) -> dict[str, Any]:
    """The state as a tree that can be stored. Frozen models, and what is frozen in others (the
    base under adapters), are left out: they never change, and whoever resumes has them."""
    return {
        "trainable": state.trainable,
        "frozen": _followers(objective, state.frozen),
        "buffers": _changing(objective, state.buffers),
        "optimizer": {name: dict(values) for name, values in state.optimizer.items()},
        "loss_state": {n: _leaves(s) for n, s in state.loss_state.items()},
        "skipped": state.skipped,
        "step": state.step,
        "seed": state.seed,
        **only_if("combine_state", _leaves(state.combine_state)),
        **only_if("loss_scale", state.loss_scale and dict(state.loss_scale)),
    }


def from_tree(objective: Objective, state: State, tree: Any) -> State:
    """The stored state, on the devices and in the structure of a fresh one.

    Raises:
      DamagedError: the tree is not one that `to_tree` makes of such a state.
      MismatchError: it is of another model.
    """
    validate(tree, _STATE, "its state")
    expected = {
        "trainable": state.trainable,
        "frozen": _followers(objective, state.frozen),
        "buffers": _changing(objective, state.buffers),
    }
    moved = {n: _like(getattr(state, n), part, tree[n], n) for n, part in expected.items()}
    return State(
        trainable=moved["trainable"],
        frozen=moved["frozen"],
        buffers=moved["buffers"],
        optimizer=_optimizer(moved["trainable"], tree["optimizer"]),
        loss_state=_loss_state(state, tree["loss_state"]),
        skipped=tree["skipped"].to(state.skipped.device),
        step=tree["step"],
        seed=tree["seed"],
        combine_state=_combine_state(state, tree.get("combine_state", [])),
        loss_scale=_loss_scale(state, tree.get("loss_scale")),
    )


def _optimizer(trainable: Params, stored: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    # A model's name may hold dots, and so do those of its parameters: no name is taken apart.
    places = {f"{m}.{n}": p for m, params in trainable.items() for n, p in params.items()}
    unknown = [str(name) for name in stored if name not in places]
    if unknown:
        raise DamagedError(f"its optimizer has a state for {unknown[0]}, which is not trained")
    return {
        name: {k: _placed(v, places[name]) for k, v in values.items()}
        for name, values in stored.items()
    }


def _loss_state(state: State, stored: Mapping[str, Any]) -> dict[str, Any]:
    device = state.skipped.device
    placed: dict[str, Any] = {}
    for name, fresh in state.loss_state.items():
        leaves, structure = optree.tree_flatten(cast(Any, fresh))
        values = stored.get(name)
        if values is None or len(values) != len(leaves):
            raise DamagedError(f"its state of the term {name!r} is not that of such a term")
        placed[name] = optree.tree_unflatten(structure, [_on(x, device) for x in values])
    return placed


def _combine_state(state: State, stored: list[Tensor]) -> Any:
    leaves, structure = optree.tree_flatten(cast(Any, state.combine_state))
    if len(leaves) != len(stored):
        raise DamagedError("its state of combined gradients is not that of such a combination")
    placed = [x.to(fresh.device) for x, fresh in zip(stored, leaves, strict=True)]
    return optree.tree_unflatten(structure, placed)


def _loss_scale(state: State, stored: Mapping[str, Tensor] | None) -> Mapping[str, Tensor] | None:
    if (stored is None) != (state.loss_scale is None):
        raise DamagedError("its loss scale is that of another precision")
    return stored and {n: x.to(state.skipped.device) for n, x in stored.items()}


def record_from(kind: Callable[..., T], tree: Any, what: str) -> T:
    """A stored record (a `NamedTuple` of numbers) as an object of its class.

    Raises:
      DamagedError: the tree is not such a record.
    """
    hints = get_type_hints(kind)
    validate(tree, {name: _FIELDS.get(hint, _ANY) for name, hint in hints.items()}, what)
    return kind(**tree)


def nonfinite_in(tree: Any) -> list[str]:
    """The paths of the tensors of a stored tree that hold nan or inf."""
    places = [
        ("/".join(map(str, path)), local(x))
        for path, x in zip(*optree.tree_flatten_with_path(tree)[:2], strict=True)
        if isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())
    ]
    if not places:
        return []
    wide = (x if x.itemsize > 1 else x.float() for _, x in places)
    flags = torch.stack([x.isfinite().all().cpu() for x in wide]).tolist()
    return [place for (place, _), finite in zip(places, flags, strict=True) if not finite]


def _leaves(loss_state: object) -> list[Any]:
    return optree.tree_leaves(cast(Any, loss_state))


def _changing(objective: Objective, params: Params) -> dict[str, Any]:
    return {n: dict(values) for n, values in params.items() if objective.models[n].kind != "frozen"}


def _followers(objective: Objective, params: Params) -> dict[str, Any]:
    """The frozen parameters that move: those of models that follow another."""
    return {n: dict(values) for n, values in params.items() if objective.models[n].kind == "ema"}


def _like(fresh: Params, expected: Params, stored: Params, what: str) -> Any:
    """The stored tensors, with those of a fresh state where none are stored."""
    placed = {name: dict(values) for name, values in fresh.items()}
    for name, key, value in _entries(stored):
        place = placed.get(name, {}).get(key)
        if place is None or (place.shape, place.dtype) != (value.shape, value.dtype):
            here = "nothing" if place is None else f"{tuple(place.shape)} {place.dtype}"
            raise MismatchError(
                f"the checkpoint has {what} {name}.{key} {tuple(value.shape)} {value.dtype}, and "
                f"the objective here has {here} instead."
            )
        placed[name][key] = cut_like(value, place) if is_cut(place) else _placed(value, place)
    missing = [f"{n}.{k}" for n, k, _ in _entries(expected) if k not in stored.get(n, {})]
    if missing:
        raise DamagedError(f"its state has no {what} {missing[0]} ({len(missing)} are missing)")
    return placed


def _entries(params: Params) -> Iterator[tuple[str, str, Tensor]]:
    return ((name, key, x) for name, values in params.items() for key, x in values.items())


def _placed(value: Any, like: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    if is_cut(like):
        return rows_like(value, like)
    # A step counter may live on the host beside a parameter on the device.
    return value.to(like.device) if value.ndim or like.device.type == "cpu" else value


def _on(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


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

    def state_of(read: Checkpoint) -> State:
        return from_tree(step.objective, fresh, _stored(read.tree))

    def read(places: Places | None = None) -> Checkpoint:
        if is_checkpoint(folder):
            return load(folder, fingerprint=described, places=places)
        newest = load_latest(folder, fingerprint=described, places=places, accept=state_of)
        if newest is None:
            raise CheckpointError(f"restore: there is no checkpoint in {folder}.")
        return newest

    places = places_of(fresh)
    if places is None:
        tree = tree_of_first(step.world, lambda: _stored(read().tree))
        return from_tree(step.objective, fresh, tree)
    told = read_in_parts(step.world, places, read)
    return from_tree(step.objective, fresh, _stored(told and told[0]))


def places_of(state: State) -> Places | None:
    """Which tensors of a checkpoint this process holds rows of; None if of none."""
    likes: dict[str, Tensor] = {}
    for tree in ("trainable", "frozen"):
        for model, params in getattr(state, tree).items():
            likes |= {f"state/{tree}/{model}/{n}": p for n, p in params.items() if is_cut(p)}
    for model, params in state.trainable.items():
        likes |= {f"state/optimizer/{model}.{n}": p for n, p in params.items() if is_cut(p)}
    return Places(likes) if likes else None


def _stored(tree: Any) -> Any:
    """The state in the tree of a checkpoint."""
    return tree.get("state") if isinstance(tree, dict) else None
