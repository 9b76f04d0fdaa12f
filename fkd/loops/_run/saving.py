"""What a run saves, and which process writes it."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

from .._base.state import State
from .._checkpoint.checkpoint import Others, Saving, ToSave, to_save
from .._checkpoint.lock import ensure_held
from .._checkpoint.parts import begin_in_parts, save_in_parts
from .._checkpoint.tree import encode
from .prepared import state_of
from .resume import to_tree
from .run import Run

_log = logging.getLogger("fkd")


def saved(run: Run, *, metric: float | None, finite: bool) -> Path:
    """Save a checkpoint. Where the processes hold rows, each writes its own, if all of them see
    the folder; else the first one gathers, and writes.

    Args:
      run: of now.
      metric: what "best" goes by.
      finite: whether the state is.
    """
    run.writer.wait()
    together = run.step.together
    if together is not None and together.cutting is not None:
        tree = _tree(run, together.in_parts(run.state))
        path = _in_parts(run, together.cutting.part, tree, metric, finite)
        if path is not None:
            return path
    tree = _tree(run, run.step.whole(run.state))
    return Path(run.world.shared(lambda: str(_save(run, tree, metric, finite))))


def _in_parts(
    run: Run, part: int, tree: dict[str, Any], metric: float | None, finite: bool
) -> Path | None:
    """Each process its part, at once or in a thread; None where they have no folder in common."""
    if not run.options.save_async:
        write = functools.partial(_save, run, tree, metric, finite)
        return save_in_parts(run.world, part, tree, write)

    def first() -> Saving:
        wanted = _wanted(run, tree, metric, finite)
        ensure_held(Path(wanted.directory))
        return to_save(wanted, copies=True)

    under_way = begin_in_parts(run.world, part, tree, first)
    if under_way is None:
        return None
    run.writer.start(under_way.write, under_way)
    return under_way.path


def _tree(run: Run, state: State) -> dict[str, Any]:
    """What a checkpoint of a run holds."""
    return {
        "state": to_tree(run.step.objective, state),
        "position": run.at._asdict(),
        "window": run.window.to_tree(),
        "settings": run.settings,
        "loader": _place(run),
        "prepare": state_of(run.options.prepare),
        **({"related": related} if (related := run.step.related) else {}),
        **({"evaluations": [*run.evaluations]} if run.evaluations else {}),
    }


def _save(
    run: Run,
    tree: dict[str, Any],
    metric: float | None,
    finite: bool,
    others: Others | None = None,
) -> Path:
    """Write a checkpoint, in the process that writes; at once, or in a thread."""
    wanted = _wanted(run, tree, metric, finite, others)
    folder = Path(wanted.directory)
    ensure_held(folder)
    beside = run.options.save_async and others is None
    saving = to_save(wanted, copies=beside)
    if not beside:
        return saving.write()

    def write() -> None:
        ensure_held(folder)
        saving.write()

    run.writer.start(write)
    return saving.path


def _wanted(
    run: Run,
    tree: dict[str, Any],
    metric: float | None,
    finite: bool,
    others: Others | None = None,
) -> ToSave:
    options, folder = run.options, run.options.checkpoints
    assert folder is not None
    return ToSave(
        folder,
        tree,
        step=run.state.step,
        fingerprint=run.fingerprint,
        metric=metric,
        keep_last=options.keep_last,
        keep_best=options.keep_best,
        higher_is_better=options.higher,
        finite=finite,
        others=others,
    )


def _place(run: Run) -> dict[str, Any] | None:
    """What the loader says of its place, if it can and a checkpoint can hold it."""
    place = None if run.train is None else run.train.place()
    place = run.place if place is None else place
    try:
        encode(place)
    except TypeError as error:
        if run.can_keep_place:
            _log.warning(
                "the loader's state_dict() cannot be kept, so that a resumed run draws the "
                "batches before its place again: %s",
                error,
            )
        run.can_keep_place, place = False, None
    return place
