"""A file of JSON lines that survives kills, damage and resumes."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import re
import stat
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from .._base.errors import CheckpointError
from .._base.files import NO_FOLLOW, open_regular, replace_file

Record: TypeAlias = Mapping[str, Any]
"""One log point: `step`, `time` (seconds since 1970), `kind` ("train", "eval"), `epoch`, values."""

NOT_VALUES = ("step", "time", "kind", "epoch")
"""The fields of a record that say what it is; all others are values."""

_START = re.compile(rb'(?=\{"step": )')
_LAST_TIME = 253_402_300_799  # the end of the year 9999
_log = logging.getLogger("fkd")


class JsonLines:
    """A file with one JSON object a line, each written whole and at once.

    A killed run loses at most the line it was writing. Numbers that JSON does not have are
    the strings "nan", "inf" and "-inf"; `read_log` turns them back. A link of that name is not
    followed.

    Args:
      path: of the file. Without `resume_step`, a file that is there is kept under another
        name (`metrics.1.jsonl`).
      resume_step: lines of later steps are removed; the run writes them again. So are lines that
        are damaged.

    Attributes:
      repeated: the kinds of record that are there for `resume_step` itself.

    Raises:
      CheckpointError: the file cannot be opened or written.
    """

    def __init__(self, path: Path, *, resume_step: int | None = None) -> None:
        self._path = path
        self.repeated: set[str] = set()
        with _said(path):
            if resume_step is None:
                _set_aside(path)
            else:
                self.repeated = _cut(path, resume_step)
            self._descriptor = self._open()

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0) | NO_FOLLOW
        return os.open(self._path, flags, 0o666)

    def write(self, record: Record) -> None:
        """Append one line."""
        text = json.dumps({k: strict_json(v) for k, v in record.items()})
        line = memoryview(text.encode() + b"\n")
        with _said(self._path):
            if os.fstat(self._descriptor).st_nlink == 0:
                _log.warning("%s was deleted during the run; a new one is begun", self._path)
                os.close(self._descriptor)
                self._descriptor = self._open()
            while line:
                line = line[os.write(self._descriptor, line) :]

    def close(self) -> None:
        """Sync the file to the disk, as far as the disk takes it, and close it."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            _log.warning("%s may not be on the disk: %s", self._path, error.strerror)
        finally:
            os.close(self._descriptor)


@contextlib.contextmanager
def _said(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        link = error.errno == errno.ELOOP
        why = "it is a link, which is not followed; delete it" if link else error.strerror
        raise CheckpointError(f"log: {path} cannot be written: {why or error}.") from error


def read_log(path: str | os.PathLike[str]) -> Generator[dict[str, Any]]:
    """The records of a file of JSON lines; lines that are damaged or cut short are left out."""
    with open_regular(Path(path)) as file:
        for line in file:
            for part in _parts(line):
                record = _parse(part)
                if record is not None:
                    yield record


def _set_aside(path: Path) -> None:
    if os.path.lexists(path) and (path.stat(follow_symlinks=False).st_size or not _plain(path)):
        number = 1
        while os.path.lexists(aside := path.with_name(f"{path.stem}.{number}{path.suffix}")):
            number += 1
        path.rename(aside)


def _plain(path: Path) -> bool:
    """Whether it is a file with one name, that nobody else has another name for."""
    about = path.stat(follow_symlinks=False)
    return stat.S_ISREG(about.st_mode) and about.st_nlink == 1


def _cut(path: Path, step: int) -> set[str]:
    """Remove the lines that are damaged or of a later step.

    Returns:
      The kinds of record that stay for this very step.
    """
    if path.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    if not path.exists():
        return set()
    with open_regular(path) as file:
        kept, size, damaged, kinds = _kept(file, step)
    if damaged:
        _log.warning("%s: %d damaged lines are left out", path, damaged)
    if len(kept) != size or damaged or not _plain(path):
        replace_file(path, kept)
    return kinds


def _kept(file: BinaryIO, step: int) -> tuple[bytes, int, int, set[str]]:
    """The lines up to a step; the size of all, how many are damaged, the kinds of that step."""
    lines: list[bytes] = []
    size = damaged = 0
    kinds: set[str] = set()
    for line in file:
        size += len(line)
        for part in _parts(line):
            record = _parse(part)
            damaged += record is None
            if record is None or record["step"] > step:
                continue
            lines.append(part)
            if record["step"] == step:
                kinds.add(record["kind"])
    return b"".join(lines), size, damaged, kinds


def _parts(line: bytes) -> Iterator[bytes]:
    """The line; or where its end was lost, so that two are one, each of them."""
    if line.count(b'{"step": ') < 2 or _parse(line) is not None:
        yield line
        return
    parts = [part for part in _START.split(line) if part]
    yield from (part[: part.rfind(b"}") + 1] + b"\n" for part in parts[:-1])
    yield parts[-1]


def _parse(line: bytes) -> dict[str, Any] | None:
    """The record of a line, of which each field is what it says; None if it is damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    step, kind = record.get("step"), record.setdefault("kind", "train")
    if type(step) is not int or not 0 <= step < 2**53 or not isinstance(kind, str):
        return None
    if b'nan"' in line or b'inf"' in line:
        record = {k: float(v) if v in ("nan", "inf", "-inf") else v for k, v in record.items()}
    return {k: v for k, v in record.items() if _plausible(k, v)}


def _plausible(name: str, value: Any) -> bool:
    """Whether a field is what its name says; numbers are such that a float can hold them."""
    if name in ("time", "epoch"):
        return type(value) in (int, float) and 0 <= value <= _LAST_TIME
    return not isinstance(value, int) or abs(value) < 2**1000


def strict_json(x: Any) -> Any:
    """With strings for nan and inf, which JSON does not have."""
    if isinstance(x, Mapping):
        return {str(k): strict_json(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [strict_json(v) for v in x]
    return repr(x) if isinstance(x, float) and not math.isfinite(x) else x
