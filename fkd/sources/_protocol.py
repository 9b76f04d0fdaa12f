"""What fkd's server and its client have agreed on: the paths, and what a server says of itself."""

from __future__ import annotations

import json
from typing import Any

from fkd.loops._base.errors import DamagedError
from fkd.loops._checkpoint.schema import COUNT, JSON, TEXT, validate

from ._http import Refused

FORMAT, VERSION = "fkd served", 2
ABOUT, PARAMETERS, VALUES = "/fkd/about", "/fkd/parameters", "/fkd/values"
_ABOUT = {
    "format": TEXT,
    "version": COUNT,
    "torch": TEXT,
    "name": TEXT,
    "max_bytes": COUNT,
    "refs": [{"code": TEXT, "identity": TEXT}],
    "models": JSON,
    "parameters": [(TEXT, TEXT)],
    "precision": TEXT,
    "about": JSON,
}


def read_about(body: bytearray, text: str) -> dict[str, Any]:
    """What a server says of itself.

    Args:
      body: of its answer.
      text: its first words.

    Raises:
      Refused: it is not a server of fkd, or one of another release.
    """
    try:
        about = json.loads(body)
        if (about["format"], about["version"]) == (FORMAT, VERSION):
            validate(about, _ABOUT, "it")
    except (ValueError, TypeError, KeyError, DamagedError):
        raise Refused(f"it is not a server of fkd; it said {text!r}") from None
    if (about["format"], about["version"]) != (FORMAT, VERSION):
        raise Refused(
            f"it speaks {about['format']!r} {about['version']!r}, and {FORMAT!r} {VERSION} is "
            "expected. Use one release of fkd on both sides"
        )
    return about
