"""The manifest of a checkpoint: JSON that carries the checksum of itself and of its files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .._base.errors import CheckpointError, DamagedError, UnreadableError
from .._base.files import is_absence, patiently, read_bytes
from .schema import BOOL, COUNT, JSON, NUMBER, Each, Of, maybe, validate
from .tree import DTYPES

STATE = "state.safetensors"
NAME = "manifest.json"
VERSION = 1
IN_PARTS = 2
"""The version of a checkpoint whose tensors are cut over several files."""
_FORMAT = "fkd checkpoint"
_SHA256 = re.compile("[0-9a-f]{64}")
_PART = re.compile(r"state-\d{5}\.safetensors")
_HEAD, _MIDDLE, _TAIL = b'{"sha256": "', b'", "manifest": ', b"}\n"


class Manifest(NamedTuple):
    """What a checkpoint says of itself.

    Attributes:
      step: updates done.
      serial: 1 more than any other checkpoint of the folder had when this one was saved.
      metric: what "best" goes by, if there was one.
      time: of saving, in seconds since 1970.
      fingerprint: of the objective and the optimizer.
      tree: the state, see `fkd.loops._checkpoint.tree`.
      tensors: dtype, shape and stride by name; of one that is cut, how many of its rows each
        of the files holds.
      files: size and SHA-256 by name; in the order of the rows of what is cut.
      finite: whether the state holds finite numbers only; None where it was not looked at.
    """

    step: int
    serial: int
    metric: int | float | None
    time: float
    fingerprint: Any
    tree: Any
    tensors: dict[str, dict[str, Any]]
    files: dict[str, list[Any]]
    finite: bool | None = None


_HEX = Of("64 hexadecimal digits", lambda x: isinstance(x, str) and bool(_SHA256.fullmatch(x)))
_DTYPE = Of("the name of a dtype", lambda x: isinstance(x, str) and x in DTYPES)
_SCHEMA = {
    "step": COUNT,
    "serial": COUNT,
    "metric": maybe(NUMBER),
    "time": NUMBER,
    "fingerprint": JSON,
    "tree": JSON,
    "tensors": Each({"dtype": _DTYPE, "shape": [COUNT], "stride?": [COUNT], "rows?": [COUNT]}),
    "files": Each((COUNT, _HEX)),
    "finite?": maybe(BOOL),
}


def part_name(rank: int) -> str:
    """The file that a process writes of a checkpoint in parts."""
    return STATE if rank == 0 else f"state-{rank:05d}.safetensors"


def render(manifest: Manifest) -> bytes:
    """One JSON object: the checksum, then the content that it is of."""
    version = VERSION if len(manifest.files) == 1 else IN_PARTS  # one file: any release reads it
    content = {"format": _FORMAT, "version": version, **manifest._asdict()}
    body = json.dumps(content, allow_nan=False).encode()
    return _HEAD + hashlib.sha256(body).hexdigest().encode() + _MIDDLE + body + _TAIL


def parse(raw: bytes) -> Manifest:
    """The manifest that was rendered to these bytes.

    Raises:
      DamagedError: a byte differs from what was rendered.
      CheckpointError: it was written by a later version.
    """
    start = len(_HEAD) + 64 + len(_MIDDLE)
    body = raw[start : -len(_TAIL)]
    expected = _HEAD + hashlib.sha256(body).hexdigest().encode() + _MIDDLE + body + _TAIL
    if raw != expected:
        raise DamagedError("its manifest is damaged (the checksum does not match)")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"its manifest is not JSON that can be read ({error})") from error
    if not isinstance(content, dict) or content.pop("format", None) != _FORMAT:
        raise DamagedError(f"its manifest does not say that it is of an {_FORMAT!r}")
    _check_version(content.pop("version", None))
    validate(content, _SCHEMA, "its manifest")
    _check_files(content)
    return Manifest(**content)


def _check_files(content: dict[str, Any]) -> None:
    """Refuse files of other names (a path out of the folder), one without a checksum, and rows
    that are not those of the files."""
    files = content["files"]
    unknown = [name for name in files if name != STATE and not _PART.fullmatch(name)]
    if STATE not in files or unknown:
        what = f"unknown fields: {unknown[0]!r:.80}" if unknown else f"no field {STATE}"
        raise DamagedError(f"its manifest/files has {what}; {STATE} and its parts are expected")
    for name, about in content["tensors"].items():
        rows = about.get("rows")
        if rows is None:
            continue
        if len(rows) != len(files) or not about["shape"] or sum(rows) != about["shape"][0]:
            raise DamagedError(
                f"its manifest/tensors/{name}/rows is {rows!r:.80}; the rows of "
                f"{len(files)} files that make up the shape {about['shape']} are expected"
            )


def _check_version(version: Any) -> None:
    validate(version, COUNT, "its manifest/version")
    if version > IN_PARTS:
        raise CheckpointError(
            f"it was written by a newer release of fkd: it has format version {version}, and "
            f"this release reads {IN_PARTS}. Update fkd, or use another folder."
        )
    if version < VERSION:
        raise CheckpointError(
            f"it has format version {version}, and this release reads {VERSION}. Use the release "
            "that wrote it, or another folder."
        )


def inspect(checkpoint: Path) -> Manifest:
    """The manifest of a folder whose files have the right sizes; their content is not read.

    Raises:
      DamagedError: something is missing, cut or changed; the message says what.
      CheckpointError: it cannot be read now, or a later version wrote it.
    """
    with reading():
        manifest = parse(patiently(lambda: read_bytes(checkpoint / NAME)))
        for name, (size, _) in manifest.files.items():
            there = patiently(lambda name=name: (checkpoint / name).stat().st_size)
            if there != size:
                raise DamagedError(f"{name} has {there} bytes, {size} were saved")
    return manifest


@contextlib.contextmanager
def reading() -> Generator[None]:
    """Say of an error in reading a checkpoint whether it is damaged, or cannot be read now."""
    try:
        yield
    except FileNotFoundError as error:
        raise DamagedError(f"{Path(error.filename).name} is missing") from error
    except OSError as error:
        if is_absence(error):
            raise DamagedError(f"it cannot be read: {error}") from error
        raise UnreadableError(
            f"it cannot be read now: {error.strerror or error} (tried three times). It may be "
            "whole: run again when the disk is well. If that does not help, move this folder "
            "away, and the checkpoint before it is taken."
        ) from error


def plain(x: Any, path: str = "fingerprint") -> Any:
    """A nested description as JSON: keys become strings, tuples lists, nan and inf strings."""
    if isinstance(x, Mapping):
        return {str(k): plain(v, f"{path}/{k}") for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [plain(v, f"{path}/{i}") for i, v in enumerate(x)]
    if isinstance(x, float):
        return float(x) if math.isfinite(x) else repr(float(x))
    if x is None or isinstance(x, (bool, int, str)):
        return x
    raise TypeError(
        f"save: {path} is a {type(x).__name__}; a fingerprint holds dict, list, str, numbers, "
        "bool and None. Give its repr."
    )


def differences(saved: Any, here: Any, path: str = "") -> Generator[str]:
    """Where two descriptions differ: one line for each path.

    Example:
      >>> list(differences({"lr": 0.1, "loss": "kl"}, {"lr": 0.2, "loss": "kl"}))
      ['lr: 0.1 in the checkpoint, 0.2 here']
    """
    if isinstance(saved, dict) and isinstance(here, dict):
        for key in [*saved, *(k for k in here if k not in saved)]:
            below = f"{path}/{key}" if path else key
            if key not in here:
                yield f"{below}: {_short(saved[key])} in the checkpoint, nothing here"
            elif key not in saved:
                yield f"{below}: nothing in the checkpoint, {_short(here[key])} here"
            else:
                yield from differences(saved[key], here[key], below)
    elif isinstance(saved, list) and isinstance(here, list):
        yield from differences(_numbered(saved), _numbered(here), path)
    elif saved != here or isinstance(saved, bool) != isinstance(here, bool):
        at = _first_difference(saved, here)
        there = f"{_short(saved, at)} in the checkpoint, {_short(here, at)} here"
        yield f"{path or 'all'}: {there}"


def _numbered(items: list[Any]) -> dict[str, Any]:
    return {str(i): x for i, x in enumerate(items)}


def _first_difference(saved: Any, here: Any) -> int:
    """Where two texts begin to differ; 0 of anything else."""
    if not (isinstance(saved, str) and isinstance(here, str)):
        return 0
    pairs = zip(json.dumps(saved), json.dumps(here), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), 0)


def _short(x: Any, at: int = 0) -> str:
    """A value; of a long one what stands around one of its places."""
    text = json.dumps(x)
    if len(text) <= 120:
        return text
    first = max(0, min(at - 40, len(text) - 114))
    end = "..." if first + 114 < len(text) else ""
    return ("..." if first else "") + text[first : first + 114] + end
