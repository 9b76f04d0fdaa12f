"""The run-time type check of functions that are made at every call of another one."""

# Without `from __future__ import annotations`: the hints below are values.

import pytest
from jaxtyping import TypeCheckError, jaxtyped

from tests import typecheck


def made(kind: type, default: object = None):
    @jaxtyped(typechecker=typecheck.checker)
    def inner(x: kind, y: object = default) -> kind:
        return x

    return inner


def test_each_is_checked_by_its_own_hints():
    for _ in range(2):
        assert made(int)(1) == 1 and made(str)("a") == "a"
        with pytest.raises(TypeCheckError):
            made(int)("a")
        with pytest.raises(TypeCheckError):
            made(str)(1)


def test_the_check_of_a_signature_is_made_once(monkeypatch):
    calls = []
    check = typecheck._checked
    monkeypatch.setattr(typecheck, "_checked", lambda fn: calls.append(fn) or check(fn))
    one, other = object(), object()
    for default in (one, one, other):
        made(float, default)
    assert len(calls) == 4  # of its arguments and its result, for each default value
