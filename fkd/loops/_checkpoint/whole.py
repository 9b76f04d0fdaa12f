"""A folder of several files that is replaced as a whole."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import sys
from collections.abc import Callable, Generator
from pathlib import Path

from .._base.files import discard, make_folder, sync_folder

_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
_HERE = -100  # AT_FDCWD: paths are relative to the working directory


@contextlib.contextmanager
def whole_folder(folder: Path) -> Generator[Path]:
    """A folder to write to, which takes the place of `folder` when all is written.

    A process that is killed leaves the old folder or the new one. Files of the old one that are
    not written again (a tokenizer beside a model) are kept. Where the system cannot exchange two
    folders, each file of an old one is replaced by itself. Links are replaced, not followed.
    """
    folder = folder.resolve()
    make_folder(folder.parent)
    beside = folder.with_name(f".writing-{folder.name}")
    discard(beside)
    try:
        beside.mkdir()
        yield beside
        if folder.exists():
            written = {path.name for path in beside.iterdir()}
            _keep_others(folder, beside, written)
            _sync(beside)
            if not _exchange(beside, folder):
                for name in written:
                    _replace(beside / name, folder / name)
                sync_folder(folder)
        else:
            _sync(beside)
            beside.rename(folder)
        sync_folder(folder.parent)
    finally:
        discard(beside)


def _keep_others(old: Path, new: Path, written: set[str]) -> None:
    """What stands in the old folder alone, in the new one as well."""
    for path in old.iterdir():
        if path.name in written:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, new / path.name, symlinks=True)
        else:
            shutil.copy2(path, new / path.name, follow_symlinks=False)


def _replace(path: Path, target: Path) -> None:
    if path.is_dir():
        discard(target)
    os.replace(path, target)


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    sync_folder(folder)


@functools.cache
def _renameat2() -> Callable[..., int] | None:
    """The call of Linux that exchanges two paths at once."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)


def _exchange(one: Path, other: Path) -> bool:
    """Whether the two folders have changed places."""
    call = _renameat2()
    paths = os.fsencode(one), os.fsencode(other)
    return call is not None and call(_HERE, paths[0], _HERE, paths[1], _EXCHANGE) == 0
