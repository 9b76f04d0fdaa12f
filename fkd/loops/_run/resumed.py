"""A run from its newest checkpoint: everything that is read is looked at before it is used."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from .._base.errors import DamagedError
from .._base.state import State
from .._checkpoint.checkpoint import Checkpoint, load_latest
from .._checkpoint.folder import newest_finite
from .._checkpoint.parts import read_in_parts
from .._checkpoint.places import Places
from .._checkpoint.schema import TEXT, Each, Of, validate
from .._checkpoint.told import tree_of_first
from .._step.train_step import TrainStep
from .resume import from_tree, nonfinite_in, places_of, record_from
from .settings import changed
from .window import Window

_log = logging.getLogger("fkd")

_ANY = Of("a value", lambda x: True)
_ROW = Of("a tensor with one axis", lambda x: isinstance(x, Tensor) and x.ndim == 1)
_NUMBER = Of("a number", lambda x: isinstance(x, float))
_RUN = {
    "state": Each(_ANY),
    "position": Each(_ANY),
    "window": {"names": [TEXT], "rows": [_ROW]},
    "settings": Each(_ANY),
    "loader?": _ANY,
    "prepare?": _ANY,
    "related?": Each([TEXT]),
    "evaluations?": [Each(_NUMBER)],
}


class Resumed(NamedTuple):
    """A run as a checkpoint left it.

    Attributes:
      state: of the run.
      position: its place in the data, and its best evaluation.
      window: the metrics since its last log point.
      loader: what the loader said of its place; None if it could not say.
      prepare: what `prepare` had to keep; None if nothing.
      related: what several processes had agreed on; see `TrainStep.related`.
      evaluations: what was measured until then.
      message: where it goes on, and what a person should know about that.
    """

    state: State
    position: Any
    window: Window
    loader: dict[str, Any] | None
    prepare: dict[str, Any] | None
    related: dict[str, list[str]]
    evaluations: list[dict[str, float]]
    message: str


def go_on(
    directory: Path,
    step: TrainStep,
    fresh: State,
    *,
    fingerprint: Any,
    settings: dict[str, Any],
    position: Callable[..., Any],
) -> Resumed | None:
    """The run of the newest checkpoint that is whole and holds what belongs there.

    Args:
      directory: of the checkpoints.
      step: of the run.
      fresh: a state as the run would begin with.
      fingerprint: of objective and optimizer here.
      settings: of the run here; what differs is said, and another seed is refused.
      position: the class of the record of the place in the data.

    Returns:
      None if there is no checkpoint.
    """
    lines: list[str] = []

    def parts(read: Checkpoint) -> tuple[State, Any, Window]:
        lines[:] = changed(_valid(read.tree)["settings"], settings)
        return parts_of(read.tree)

    def parts_of(tree: dict[str, Any]) -> tuple[State, Any, Window]:
        state = from_tree(step.objective, fresh, tree["state"])
        place = record_from(position, tree["position"], "its position")
        return state, place, Window.from_tree(tree["window"], state.skipped.device)

    def read(places: Places | None = None) -> Checkpoint | None:
        newest = load_latest(directory, fingerprint=fingerprint, places=places, accept=parts)
        if newest is not None:
            parts(newest)  # which notes its settings, after those of damaged ones
        return newest

    told = _told(step, fresh, read, lambda newest: _said(newest, lines))
    if told is None:
        return None
    state, place, window = parts_of(told["tree"])
    loader, prepare = told["tree"].get("loader"), told["tree"].get("prepare")
    related = told["tree"].get("related", {})
    evaluations = told["tree"].get("evaluations", [])
    return Resumed(state, place, window, loader, prepare, related, evaluations, told["message"])


def _told(
    step: TrainStep,
    fresh: State,
    read: Callable[..., Checkpoint | None],
    said: Callable[[Checkpoint], str],
) -> dict[str, Any] | None:
    """The tree that the first process has read, in all of them, and its message."""

    def whole() -> dict[str, Any] | None:
        newest = read()
        return None if newest is None else {"tree": newest.tree, "message": said(newest)}

    places = places_of(fresh)
    if places is None:
        return tree_of_first(step.world, whole)
    tree, newest = read_in_parts(step.world, places, read) or (None, None)
    if tree is None:
        return None
    message = step.world.shared(lambda: "" if newest is None else said(newest))
    return {"tree": tree, "message": message}


def _valid(tree: Any) -> dict[str, Any]:
    """The tree of a checkpoint, if it is one of a run."""
    validate(tree, _RUN, "its tree")
    window = tree["window"]
    if any(len(row) != len(window["names"]) for row in window["rows"]):
        raise DamagedError("its tree/window has rows of another length than its names")
    return tree


def _said(newest: Checkpoint, lines: list[str]) -> str:
    """Where a run goes on, in words; what a person should know about that is a warning, too."""
    directory, step = newest.path.parent, newest.step
    words = [f"resumed at step {step} from {newest.path.name}"]
    words += [f"skipped {message}" for message in newest.skipped]
    words += [f"another setting: {line}" for line in lines]
    if newest.finite is False:
        words.append(unusable(directory, nonfinite_in(newest.tree["state"])))
    for line in words[1 + len(newest.skipped) :]:
        _log.warning("%s: %s", directory, line)
    return "; ".join(words)


def unusable(directory: Path | None, places: list[str]) -> str:
    """In words, that a state is not finite, and what is left."""
    more = f" and {len(places) - 3} more" if len(places) > 3 else ""
    text = f"the state itself is not finite ({', '.join(places[:3]) or 'a part of it'}{more})"
    finite = newest_finite(directory) if directory is not None else None
    if finite is None:
        return f"{text}, and there is no checkpoint with a finite one"
    return (
        f"{text}; the newest finite one is {finite.name}: move the later checkpoints away to go "
        "on from there"
    )
