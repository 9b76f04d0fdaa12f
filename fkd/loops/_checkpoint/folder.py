"""A folder of checkpoints: which are there, which are newest, best, and kept."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .._base.errors import CheckpointError, DamagedError, UnreadableError
from .._base.files import sync_folder
from .manifest import Manifest, inspect

_NAME = re.compile(r"step-(\d+)(?:\.(\d+))?")


class Survey(NamedTuple):
    """What a folder of checkpoints holds.

    Attributes:
      good: the manifests of those whose manifest and file sizes are right.
      damaged: why the others cannot be used.
      unreadable: why others still cannot be read now; they may be whole.
    """

    good: dict[Path, Manifest]
    damaged: dict[Path, str]
    unreadable: dict[Path, str]


def best(directory: str | os.PathLike[str], *, higher_is_better: bool = True) -> Path | None:
    """The checkpoint of the best metric (the first among equals); None if there is none."""
    good = survey(Path(directory)).good
    return next(iter(_best_first(good, higher_is_better)), None)


def newest_finite(folder: Path) -> Path | None:
    """The newest checkpoint whose state is finite; None if there is none."""
    good = survey(folder).good
    return next((p for p in newest_first(good) if good[p].finite is not False), None)


def survey(folder: Path) -> Survey:
    """The checkpoints of a folder, and those that cannot be used with the reason."""
    there = Survey({}, {}, {})
    for path in checkpoints_in(folder):
        try:
            there.good[path] = inspect(path)
        except DamagedError as error:
            there.damaged[path] = str(error)
        except UnreadableError as error:
            there.unreadable[path] = str(error)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
    return there


def checkpoints_in(folder: Path) -> list[Path]:
    """What is named like a checkpoint, whole or not."""
    try:
        paths = sorted(folder.iterdir()) if folder.exists() else []
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be listed: {error.strerror}.") from error
    return [path for path in paths if _NAME.fullmatch(path.name)]


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is one checkpoint; else it is that of a run, whatever its name."""
    return bool(_NAME.fullmatch(path.name)) and not checkpoints_in(path)


def set_aside(folder: Path) -> Path | None:
    """Move the checkpoints of an earlier run into a folder `earlier-1` of their own.

    Returns:
      That folder; None if there is nothing to move.
    """
    paths = checkpoints_in(folder)
    if not paths:
        return None
    names = (folder / f"earlier-{i}" for i in itertools.count(1))
    aside = next(path for path in names if not os.path.lexists(path))
    try:
        aside.mkdir()
        for path in paths:
            path.rename(aside / path.name)
        sync_folder(folder)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: the checkpoints of an earlier run cannot be moved aside to {aside.name}: "
            f"{error.strerror}. Use another folder for this run."
        ) from error
    return aside


def kept(
    good: dict[Path, Manifest], keep_last: int, keep_best: int, higher_is_better: bool
) -> set[Path]:
    """The newest and the best; and the newest whose state is finite, whatever came after it."""
    last = itertools.islice(newest_first(good), keep_last)
    finite = next((p for p in newest_first(good) if good[p].finite is not False), None)
    return {
        *last,
        *([finite] if finite else []),
        *itertools.islice(_best_first(good, higher_is_better), keep_best),
    }


def newest_first(good: dict[Path, Manifest]) -> Iterator[Path]:
    """By when they were saved, whatever their step."""
    return iter(sorted(good, key=lambda path: -good[path].serial))


def _best_first(good: dict[Path, Manifest], higher_is_better: bool) -> Iterator[Path]:
    sign = -1.0 if higher_is_better else 1.0
    measured = {p: sign * m.metric for p, m in good.items() if m.metric is not None}
    return iter(sorted(measured, key=lambda path: (measured[path], good[path].serial)))


def free_name(folder: Path, step: int) -> str:
    """`step-00000100`, or `step-00000100.1` beside one that is still there."""
    name = f"step-{step:08d}"
    names = (name if i == 0 else f"{name}.{i}" for i in itertools.count())
    return next(n for n in names if not os.path.lexists(folder / n))


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint."""
    match = _NAME.fullmatch(path.name)
    assert match
    return int(match[1])
