"""The header of a cache: JSON that carries its own checksum."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from fkd.loops._base.errors import DamagedError
from fkd.loops._base.files import open_regular, replace_file
from fkd.loops._checkpoint.schema import (
    BOOL,
    COUNT,
    INTEGER,
    JSON,
    NUMBER,
    TEXT,
    Of,
    maybe,
    validate,
)
from fkd.loops._checkpoint.tree import DTYPES

from ._errors import DamagedSourceError, SourceError
from ._parameters import Parameters
from ._rows import Reading
from ._store import Shard

NAME = "header.json"
PART = "part.json"
VERSION = 3
_FORMAT = "fkd source"
_HEAD, _MIDDLE, _TAIL = b'{"sha256": "', b'", "header": ', b"}\n"
_FILE = re.compile(r"(part-\d+/)?\d{5,}\.safetensors")
_SHARD = Of("the name of a shard", lambda x: isinstance(x, str) and bool(_FILE.fullmatch(x)))
_DTYPE = Of("the name of a dtype", lambda x: isinstance(x, str) and x in DTYPES)
_NAME = Of("the name or place of a field", lambda x: isinstance(x, str) or type(x) is int)
_FORM = {"dtype": _DTYPE, "live": _DTYPE, "shape": [INTEGER], "fill": NUMBER}
_SCHEMA = {
    "name": TEXT,
    "refs": [
        {"code": TEXT, "identity": TEXT, "kept": TEXT, "kept_identity": TEXT, "structure": JSON}
    ],
    "forms": [_FORM],
    "models": JSON,
    "parameters": {"names": [(TEXT, TEXT)], "size": COUNT, "sha256": TEXT},
    "reading": {"fields": [_NAME], "key": maybe(_NAME), "masks": [_NAME]},
    "precision": TEXT,
    "about": JSON,
    "versions": JSON,
    "shards": [
        {
            "file": _SHARD,
            "samples": COUNT,
            "size": COUNT,
            "sha256": TEXT,
            "index_size": COUNT,
            "index_sha256": TEXT,
        }
    ],
    "complete": BOOL,
}


class Header(NamedTuple):
    """What a cache says of itself.

    Attributes:
      name: of the source.
      refs: what is kept: code and identity of the ref that the terms read, those of what is kept
        of it (the same, if every number is), and the structure of the value over the forms.
      forms: of the tensors, in their order.
      models: of the teacher, see `describe_model`.
      parameters: of the teacher, that the terms read beside its values.
      reading: how samples are recognised.
      precision: in which the teacher ran.
      about: what the user says of it.
      versions: of fkd's format and of torch, when it was begun.
      shards: in the order in which they were written.
      complete: whether the loader came to its end.
    """

    name: str
    refs: list[dict[str, Any]]
    forms: list[dict[str, Any]]
    models: dict[str, Any]
    parameters: Parameters
    reading: Reading
    precision: str
    about: Any
    versions: dict[str, str]
    shards: list[Shard]
    complete: bool


def write_header(path: Path, header: Header) -> None:
    """Write a header instead of the one that is there: readers see the old or the new."""
    content = {
        **header._asdict(),
        "reading": header.reading._asdict(),
        "parameters": header.parameters._asdict(),
        "shards": [shard._asdict() for shard in header.shards],
    }
    text = json.dumps({"format": _FORMAT, "version": VERSION, **content}, allow_nan=False)
    body = text.encode()
    sha256 = hashlib.sha256(body).hexdigest().encode()
    replace_file(path, _HEAD + sha256 + _MIDDLE + body + _TAIL)


def part_files(folder: Path) -> list[Path]:
    """The headers of the parts that are not joined yet, by rank."""
    files = folder.glob(f"part-*/{PART}")
    return sorted(files, key=lambda path: (len(path.parent.name), path.parent.name))


def read_header(folder: Path) -> Header | None:
    """What a folder has: its header, with the shards of parts that are not joined yet; None if
    there is nothing.

    Raises:
      DamagedSourceError: a byte of a header is not what was written.
      SourceError: a later version wrote it, it cannot be read, or the parts are of several caches.
    """
    # The parts first: they are deleted after the header that has their shards is written.
    parts = [part for part in map(_read, part_files(folder)) if part is not None]
    header = _read(folder / NAME)
    headers = parts if header is None else [header, *parts]
    if not headers:
        return None
    if any(one.name != headers[0].name for one in headers):
        raise SourceError(
            f"{folder} has parts of several caches, of other teachers or values. Delete it, and "
            "make the cache again: all processes with the same objective and options."
        )
    shards = {shard.file: shard for one in headers for shard in one.shards}
    complete = header is not None and header.complete
    return headers[0]._replace(shards=list(shards.values()), complete=complete)


def _read(path: Path) -> Header | None:
    """One header; None if it is not there."""
    try:
        with open_regular(path) as file:
            raw = file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}.") from error
    start = len(_HEAD) + 64 + len(_MIDDLE)
    body = raw[start : -len(_TAIL)]
    if raw != _HEAD + hashlib.sha256(body).hexdigest().encode() + _MIDDLE + body + _TAIL:
        raise DamagedSourceError(f"{path} is damaged: its checksum does not fit. {_AGAIN}")
    content = json.loads(body)
    if content.pop("format", None) != _FORMAT or content.pop("version", None) != VERSION:
        raise SourceError(
            f"{path} is not of a format that this release of fkd reads ({_FORMAT!r}, version "
            f"{VERSION}). Update fkd, or use another folder."
        )
    try:
        validate(content, _SCHEMA, "it")
    except DamagedError as error:
        raise DamagedSourceError(f"{path} is damaged: {error}. {_AGAIN}") from error
    reading = content.pop("reading")
    content["parameters"] = Parameters(**content["parameters"])
    content["shards"] = [Shard(**shard) for shard in content["shards"]]
    fields, masks = tuple(reading["fields"]), tuple(reading["masks"])
    return Header(reading=Reading(fields, reading["key"], masks), **content)


_AGAIN = "Delete the folder, and make the cache again."
