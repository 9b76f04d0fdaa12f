"""Files that are either whole or absent: written beside, synced, renamed."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

CHUNK = 1 << 22  # bytes read or written at once


class Digest(NamedTuple):
    """What a file must be.

    Attributes:
      size: in bytes.
      sha256: of its content, in hexadecimal.
    """

    size: int
    sha256: str


def write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> Digest:
    """Write a new file and wait until it is on the disk.

    The digest is of the bytes that were meant, not of the bytes that can be read back.
    """
    total, sha256 = 0, hashlib.sha256()
    with open(path, "xb", buffering=0) as file:
        for chunk in chunks:
            view = memoryview(chunk)
            total += view.nbytes
            for start in range(0, view.nbytes, CHUNK):
                part = view[start : start + CHUNK]
                sha256.update(part)
                _write_all(file.fileno(), part)
        os.fsync(file.fileno())
    return Digest(total, sha256.hexdigest())


def _write_all(descriptor: int, part: memoryview) -> None:
    # One write may take less than it was given (a signal, a disk that is about to be full).
    while part:
        part = part[os.write(descriptor, part) :]


def digest(path: Path) -> Digest:
    """Read a file through, `CHUNK` bytes at a time."""
    total, sha256 = 0, hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            total += len(chunk)
            sha256.update(chunk)
    return Digest(total, sha256.hexdigest())


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and its parents, and wait until they are on the disk."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file in the place of the one with that name: readers see the old or the new."""
    beside = path.with_name(f".{path.name}.writing")
    beside.unlink(missing_ok=True)
    try:
        write_file(beside, [content])
        beside.rename(path)
        sync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def remove_folder(path: Path, *, beside: Path) -> None:
    """Remove a folder: it takes the name `beside` at once, its files go after that."""
    path.rename(beside)
    sync_folder(path.parent)
    shutil.rmtree(beside, ignore_errors=True)
