"""The manifest of a checkpoint: JSON that carries the checksum of itself and of its files."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .._errors import CheckpointError, DamagedError

NAME = "manifest.json"
VERSION = 1
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
      tensors: dtype, shape and stride by name.
      files: size and SHA-256 by name.
    """

    step: int
    serial: int
    metric: int | float | None
    time: float
    fingerprint: Any
    tree: Any
    tensors: dict[str, dict[str, Any]]
    files: dict[str, list[Any]]


def render(manifest: Manifest) -> bytes:
    """One JSON object: the checksum, then the content that it is of."""
    content = {"format": "fkd checkpoint", "version": VERSION, **manifest._asdict()}
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
    content = json.loads(body)
    version = content.pop("version")
    del content["format"]
    if version != VERSION:
        raise CheckpointError(
            f"it has format version {version}, this release reads {VERSION}. Update fkd."
        )
    return Manifest(**content)


def inspect(checkpoint: Path) -> Manifest:
    """The manifest of a folder whose files have the right sizes; their content is not read.

    Raises:
      DamagedError: something is missing, cut or changed; the message says what.
    """
    try:
        manifest = parse((checkpoint / NAME).read_bytes())
        for name, (size, _) in manifest.files.items():
            found = (checkpoint / name).stat().st_size
            if found != size:
                raise DamagedError(f"{name} has {found} bytes, {size} were saved")
    except FileNotFoundError as error:
        raise DamagedError(f"{Path(error.filename).name} is missing") from error
    except OSError as error:
        raise DamagedError(f"it cannot be read: {error}") from error
    return manifest


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
        yield f"{path or 'all'}: {_short(saved)} in the checkpoint, {_short(here)} here"


def _numbered(items: list[Any]) -> dict[str, Any]:
    return {str(i): x for i, x in enumerate(items)}


def _short(x: Any) -> str:
    text = json.dumps(x)
    return text if len(text) <= 120 else text[:117] + "..."
