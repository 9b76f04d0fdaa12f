"""A file of JSON lines that survives kills and resumes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

Record: TypeAlias = Mapping[str, Any]
"""One log point: `step`, `time` (seconds since 1970), `kind` ("train", "eval"), `epoch`, values."""


class JsonLines:
    """A file with one JSON object a line, each written whole and at once.

    A killed run loses at most the line it was writing. Numbers that JSON does not have are
    the strings "nan", "inf" and "-inf"; `read_log` turns them back.

    Args:
      path: of the file. Without `resume_step`, a file that is there is kept under another
        name (`metrics.1.jsonl`).
      resume_step: lines of later steps are cut off; the run writes them again.
    """

    def __init__(self, path: Path, *, resume_step: int | None = None) -> None:
        if resume_step is None:
            _set_aside(path)
        else:
            _cut(path, resume_step)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def write(self, record: Record) -> None:
        """Append one line."""
        line = memoryview(
            json.dumps({k: strict_json(v) for k, v in record.items()}).encode() + b"\n"
        )
        while line:
            line = line[os.write(self._descriptor, line) :]

    def close(self) -> None:
        """Sync the file to the disk and close it."""
        os.fsync(self._descriptor)
        os.close(self._descriptor)


def read_log(path: str | os.PathLike[str]) -> Generator[dict[str, Any]]:
    """The records of a file of JSON lines; lines that are damaged or cut short are left out."""
    with open(path, "rb") as file:
        for line in file:
            record = _parse(line)
            if record is not None:
                yield record


def _set_aside(path: Path) -> None:
    if path.exists() and path.stat().st_size:
        number = 1
        while (aside := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
            number += 1
        path.rename(aside)


def _cut(path: Path, step: int) -> None:
    """Truncate at the first line that is damaged or of a later step."""
    if not path.exists():
        return
    with open(path, "r+b") as file:
        end = 0
        for line in file:
            record = _parse(line)
            if record is None or record["step"] > step:
                break
            end += len(line)
        file.truncate(end)


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        return None
    if b'nan"' in line or b'inf"' in line:
        record = {k: float(v) if v in ("nan", "inf", "-inf") else v for k, v in record.items()}
    return record


def strict_json(x: Any) -> Any:
    """With strings for nan and inf, which JSON does not have."""
    if isinstance(x, Mapping):
        return {str(k): strict_json(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [strict_json(v) for v in x]
    return repr(x) if isinstance(x, float) and not math.isfinite(x) else x
