"""A folder of checkpoints: which are there, which are newest, best, and kept."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

from .._errors import CheckpointError, DamagedError
from .manifest import Manifest, inspect

_NAME = re.compile(r"step-(\d+)(?:\.(\d+))?")


def latest(directory: str | os.PathLike[str]) -> Path | None:
    """The newest checkpoint whose manifest and file sizes are right; None if there is none."""
    good, _ = survey(Path(directory))
    return next(iter(newest_first(good)), None)


def best(directory: str | os.PathLike[str], *, higher_is_better: bool = True) -> Path | None:
    """The checkpoint of the best metric (the newest among equals); None if there is none."""
    good, _ = survey(Path(directory))
    return next(iter(_best_first(good, higher_is_better)), None)


def survey(folder: Path) -> tuple[dict[Path, Manifest], dict[Path, str]]:
    """The checkpoints of a folder, and those that are seen to be damaged with the reason."""
    good: dict[Path, Manifest] = {}
    damaged: dict[Path, str] = {}
    try:
        paths = sorted(folder.iterdir()) if folder.exists() else []
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be listed: {error.strerror}.") from error
    for path in paths:
        if _NAME.fullmatch(path.name):
            try:
                good[path] = inspect(path)
            except DamagedError as error:
                damaged[path] = str(error)
            except CheckpointError as error:
                raise CheckpointError(f"{path}: {error}") from error
    return good, damaged


def kept(
    good: dict[Path, Manifest], keep_last: int, keep_best: int, higher_is_better: bool
) -> set[Path]:
    """The newest and the best."""
    last = itertools.islice(newest_first(good), keep_last)
    return {*last, *itertools.islice(_best_first(good, higher_is_better), keep_best)}


def newest_first(good: dict[Path, Manifest]) -> Iterator[Path]:
    """By when they were saved, whatever their step."""
    return iter(sorted(good, key=lambda path: -good[path].serial))


def _best_first(good: dict[Path, Manifest], higher_is_better: bool) -> Iterator[Path]:
    sign = -1.0 if higher_is_better else 1.0
    metrics = {p: sign * m.metric for p in newest_first(good) if (m := good[p]).metric is not None}
    return iter(sorted(metrics, key=lambda path: metrics[path]))


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
