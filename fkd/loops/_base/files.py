"""Files that are either whole or absent: written beside, synced, renamed. Links are not followed
where something is written, and only regular files are read."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

CHUNK = 1 << 22  # bytes read or written at once
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_WITHOUT_WAITING = getattr(os, "O_NONBLOCK", 0)  # else a FIFO waits for its other end
_BINARY = getattr(os, "O_BINARY", 0)

_TRANSIENT = frozenset(
    getattr(errno, name)
    for name in ("EIO", "EMFILE", "ENFILE", "EAGAIN", "ESTALE", "EBUSY", "ENOMEM", "ETIMEDOUT")
    if hasattr(errno, name)
)
_NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_CANNOT_SYNC = {errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS, errno.EISDIR}

T = TypeVar("T")


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


def is_absence(error: OSError) -> bool:
    """Whether an error says that the file is not there, or is something else than a file; any
    other one says only that it could not be read now."""
    return isinstance(error, _NOT_THERE) or error.errno in (errno.ELOOP, errno.ENXIO, errno.EINVAL)


def patiently(read: Callable[[], T], *, pauses: Iterable[float] = (0.05, 0.3)) -> T:
    """The value of `read`; where a disk or the system fails in passing, after a pause."""
    for pause in pauses:
        try:
            return read()
        except OSError as error:
            if error.errno not in _TRANSIENT:
                raise
            time.sleep(pause)
    return read()


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read it. A FIFO, a device or a folder is refused, and never waited for."""
    descriptor = os.open(path, os.O_RDONLY | _WITHOUT_WAITING | _BINARY)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: Path) -> bytes:
    """The content of a regular file."""
    with open_regular(path) as file:
        return file.read()


def digest(path: Path) -> Digest:
    """Read a file through, `CHUNK` bytes at a time."""
    total, sha256 = 0, hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(CHUNK):
            total += len(chunk)
            sha256.update(chunk)
    return Digest(total, sha256.hexdigest())


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can say so.

    Windows does not open folders, and some network and FUSE file systems do not sync them.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except (PermissionError, IsADirectoryError):
        if os.name == "nt":
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and its parents, and wait until they are on the disk."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file instead of the one with that name: readers see the old or the new. A link of
    that name is replaced, not followed."""
    beside = path.with_name(f".{path.name}.writing")
    discard(beside)
    try:
        write_file(beside, [content])
        os.replace(beside, path)
        sync_folder(path.parent)
    finally:
        discard(beside)


def discard(path: Path) -> None:
    """Remove whatever has this name, if it can be removed; what a link leads to stays."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def remove_folder(path: Path, *, beside: Path) -> None:
    """Remove a folder: it takes the name `beside` at once, its files go after that."""
    path.rename(beside)
    sync_folder(path.parent)
    discard(beside)
