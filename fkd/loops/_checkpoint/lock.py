"""One run for one folder."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import stat
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from filelock import lock_descriptor

from .._base.errors import CheckpointError
from .._base.files import NO_FOLLOW


class _Hold(NamedTuple):
    """What a process holds of a folder.

    Attributes:
      process: which one.
      identity: of the folder (device and inode), which tells it from another of that name.
      descriptors: of the locked files.
    """

    process: int
    identity: tuple[int, int]
    descriptors: list[int]


_LOG = logging.getLogger("fkd")
_NO_LOCKS = {
    getattr(errno, name)
    for name in ("ENOLCK", "ENOTSUP", "EOPNOTSUPP", "ENOSYS")
    if hasattr(errno, name)
}
"""What network and FUSE file systems say that know no locks."""

_holds: dict[Path, _Hold] = {}


def _forget_in_child() -> None:
    # A forked loader worker shares the lock with its parent; if it outlived a killed run it
    # would go on holding it. Closing its own descriptors leaves the parent's lock as it is.
    for hold in _holds.values():
        while hold.descriptors:
            os.close(hold.descriptors.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


@contextmanager
def lock(directory: str | os.PathLike[str]) -> Generator[Path]:
    """Hold a folder for this run; a second run in it is refused.

    The lock is one of the system's on `<directory>/.lock` (by the library filelock), and where
    the system locks folders, on the folder itself, so that a deleted `.lock` lets nobody in. The
    system lets go of it when the process ends in whatever way, so there are no stale locks. The
    file itself stays. A process that is forked inside does not hold the folder.

    Args:
      directory: made if it is missing.

    Yields:
      The path of the lock's file.

    Raises:
      CheckpointError: another run holds the folder (the message names its process and host),
        or the folder cannot be written, or `.lock` is a link.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder, lock(folder) as path:
      ...     path.name
      '.lock'
    """
    path = Path(directory) / ".lock"
    folder = path.parent.resolve()
    descriptors = [_open(path)]
    try:
        _acquire(descriptors[0], path)
        if (whole := _open_folder(path.parent)) is not None:
            descriptors.append(whole)
            _acquire_folder(whole, descriptors[0], path)
        _sign(descriptors[0])
        _holds[folder] = hold = _Hold(os.getpid(), _identity(folder), descriptors)
        try:
            yield path
        finally:
            if _holds.get(folder) is hold:
                del _holds[folder]
    finally:
        for descriptor in descriptors:  # none is left in a forked process
            os.close(descriptor)


def ensure_held(directory: Path) -> None:
    """Look whether this process may still write to a folder that was locked.

    Raises:
      CheckpointError: this is a process that was forked inside the run, or the folder was
        deleted or replaced by another one in the meantime.
    """
    hold = _holds.get(directory.resolve())
    if hold is not None and hold.process != os.getpid():
        raise CheckpointError(
            f"{directory} belongs to the run of process {hold.process}; this is process "
            f"{os.getpid()}, which was forked inside it and writes nothing. End it with os._exit."
        )
    if hold is None or _identity(directory) != hold.identity:
        raise CheckpointError(
            f"{directory} was deleted or replaced while a run was writing to it. Nothing more is "
            "written, since another run may be in it now. Start the run again."
        )


def _identity(folder: Path) -> tuple[int, int]:
    try:
        there = folder.stat()
    except OSError:
        return (-1, -1)
    return there.st_dev, there.st_ino


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | NO_FOLLOW, 0o666)
    except OSError as error:
        raise CheckpointError(
            f"lock: {path} cannot be opened: {_why(path, error)}. A run needs a folder that it may "
            "write to."
        ) from error
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode) or about.st_nlink > 1:
        os.close(descriptor)
        raise CheckpointError(
            f"lock: {path} is not a file of its own (a device, or a second name of another file). "
            "Delete it."
        )
    return descriptor


def _why(path: Path, error: OSError) -> str:
    """Why the file of a lock cannot be opened."""
    folder = path.parent
    if error.errno == errno.ELOOP or path.is_symlink():
        return "it is a link, which is not followed; delete it"
    if path.exists() and not path.is_file():
        return "it is not a file; delete it"
    if folder.is_symlink() and not folder.exists():
        return f"{folder} is a link to {os.readlink(folder)}, which is not there"
    if folder.is_file():
        return f"{folder} is a file, and not a folder"
    return error.strerror or str(error)


def _open_folder(folder: Path) -> int | None:
    try:
        return os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return None


def _acquire(descriptor: int, path: Path) -> None:
    try:
        free = lock_descriptor(descriptor, blocking=False)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise CheckpointError(f"lock: {path}: {error.strerror}.") from error
        _LOG.warning(
            "%s: this file system has no locks (%s), so that nothing keeps a second run out of the "
            "folder. Give every run a folder of its own.",
            *(path.parent, error.strerror),
        )
        return
    if not free:
        raise _in_use(descriptor, path)


def _acquire_folder(folder: int, descriptor: int, path: Path) -> None:
    free = True
    with contextlib.suppress(OSError):  # NFS locks no folders
        free = lock_descriptor(folder, blocking=False)
    if not free:
        raise _in_use(descriptor, path)


def _in_use(descriptor: int, path: Path) -> CheckpointError:
    return CheckpointError(
        f"lock: {path.parent} is in use by another run ({_holder(descriptor)}). "
        "Stop that run, or give this one a folder of its own."
    )


def _sign(descriptor: int) -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since})
    # Windows locks the first byte against readers, too: the name begins behind it.
    with contextlib.suppress(OSError):  # on a full disk the lock holds, without a name
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, b" " + text.encode())


def _holder(descriptor: int) -> str:
    try:
        os.lseek(descriptor, 1, os.SEEK_SET)
        owner = json.loads(os.read(descriptor, 4096))
        pid, host, since = (owner[name] for name in ("pid", "host", "since"))
        if isinstance(pid, int) and f"{host}{since}".isprintable():
            return f"process {pid} on {host}, since {since}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return "its process is not known"
