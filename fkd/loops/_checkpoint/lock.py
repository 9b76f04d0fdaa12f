"""One run for one folder."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from .._errors import CheckpointError

_held: set[int] = set()  # descriptors of the locks of this process


def _forget_in_child() -> None:
    # A forked loader worker shares the lock with its parent; if it outlived a killed run it
    # would go on holding it. Closing its own descriptor leaves the parent's lock as it is.
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


@contextmanager
def lock(directory: str | os.PathLike[str]) -> Generator[Path]:
    """Hold a folder for this run; a second run in it is refused.

    The lock is `flock` on `<directory>/.lock`. The kernel lets go of it when the process ends
    in whatever way, so there are no stale locks. The file itself stays.

    Args:
      directory: made if it is missing.

    Yields:
      The path of the lock's file.

    Raises:
      CheckpointError: another run holds the folder (the message names its process and host),
        or the folder cannot be written.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder, lock(folder) as path:
      ...     path.name
      '.lock'
    """
    path = Path(directory) / ".lock"
    descriptor = _open(path)
    try:
        _acquire(descriptor, path)
        _held.add(descriptor)
        yield path
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise CheckpointError(
            f"lock: {path} cannot be opened: {error.strerror}. "
            "A run needs a folder that it may write to."
        ) from error


def _acquire(descriptor: int, path: Path) -> None:
    import fcntl  # POSIX only

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise CheckpointError(f"lock: {path}: {error.strerror}.") from error
        raise CheckpointError(
            f"lock: {path.parent} is in use by another run ({_holder(descriptor)}). "
            "Stop that run, or give this one a folder of its own."
        ) from error
    _sign(descriptor)


def _sign(descriptor: int) -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since})
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)


def _holder(descriptor: int) -> str:
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
    except (ValueError, KeyError, TypeError):
        return "its process is not known"
