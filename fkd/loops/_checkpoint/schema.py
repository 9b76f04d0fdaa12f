"""What a value that was read from the disk must look like, and in words what it does not.

A schema is one of: `Of(words, test)`; a dict, for an object with exactly these fields (those whose
name ends in "?" may be left out); a list of one schema, for a list of any length; a tuple of
schemas, for a list of that length; `Each(schema)`, for an object with any names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from .._base.errors import DamagedError

DEPTH = 100  # of nested lists and objects
LARGEST = 1 << 63

Schema: TypeAlias = Any
"""See the text of this file."""


class Of(NamedTuple):
    """A single value.

    Attributes:
      words: what is expected, for the message.
      test: whether a value is one.
    """

    words: str
    test: Callable[[Any], bool]


class Each(NamedTuple):
    """An object with any names.

    Attributes:
      schema: of each value.
    """

    schema: Schema


def _integer(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)


def _number(x: Any) -> bool:
    # A float may hold any number; an integer that no float can hold is not one here.
    return isinstance(x, float) or (_integer(x) and abs(x) < LARGEST)


def _shallow(x: Any, depth: int = 0) -> bool:
    if not isinstance(x, (dict, list)):
        return True
    below = x.values() if isinstance(x, dict) else x
    return depth < DEPTH and all(_shallow(y, depth + 1) for y in below)


COUNT = Of("an integer from 0 on", lambda x: _integer(x) and 0 <= x < LARGEST)
INTEGER = Of("an integer", lambda x: _integer(x))
NUMBER = Of("a finite number", lambda x: _number(x) and math.isfinite(x))
TEXT = Of("a string", lambda x: isinstance(x, str))
BOOL = Of("true or false", lambda x: isinstance(x, bool))
JSON = Of(f"not nested over {DEPTH} levels", _shallow)


def maybe(one: Of) -> Of:
    """The same, or null."""
    return Of(f"{one.words} or null", lambda x: x is None or one.test(x))


def validate(value: Any, schema: Schema, what: str) -> None:
    """Compare a value with its schema.

    Args:
      value: as read.
      schema: as the text of this file says.
      what: the name of the value, for the message.

    Raises:
      DamagedError: it is something else; says where, what was read and what is expected.
    """
    if isinstance(schema, Of):
        if not schema.test(value):
            _refuse(value, schema.words, what)
    elif isinstance(schema, Each):
        if not isinstance(value, dict):
            _refuse(value, "an object", what)
        for name, x in value.items():
            validate(x, schema.schema, f"{what}/{name}")
    elif isinstance(schema, dict):
        _fields(value, schema, what)
    else:
        _items(value, schema, what)


def _fields(value: Any, schema: Mapping[str, Schema], what: str) -> None:
    if not isinstance(value, dict):
        _refuse(value, "an object", what)
    known = {name.removesuffix("?"): x for name, x in schema.items()}
    missing = [n for n in schema if not n.endswith("?") and n not in value]
    unknown = [str(n) for n in value if n not in known]
    if missing:
        raise DamagedError(f"{what} has no field {', '.join(missing)}")
    if unknown:
        raise DamagedError(f"{what} has unknown fields: {', '.join(unknown[:5])}")
    for name, x in value.items():
        validate(x, known[name], f"{what}/{name}")


def _items(value: Any, schema: Any, what: str) -> None:
    if not isinstance(value, list):
        _refuse(value, "a list", what)
    if isinstance(schema, tuple) and len(value) != len(schema):
        raise DamagedError(f"{what} has {len(value)} items; {len(schema)} are expected")
    schemas = schema if isinstance(schema, tuple) else schema * len(value)
    for i, (x, one) in enumerate(zip(value, schemas, strict=True)):
        validate(x, one, f"{what}/{i}")


def _refuse(value: Any, expected: str, what: str) -> None:
    kinds = {dict: "an object", list: "a list", str: "a string", int: "a huge integer"}
    kind = kinds.get(type(value), repr(value))
    if (isinstance(value, str) and len(value) < 40) or _number(value):
        kind = repr(value)
    raise DamagedError(f"{what} is {kind[:80]}; {expected} is expected")
