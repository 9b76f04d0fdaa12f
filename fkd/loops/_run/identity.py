"""Whether an objective is the same as before: digests of what its repr does not say."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
import types
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._base.digest import digest_of

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def without_addresses(text: str) -> str:
    """A repr without what differs from one process to the next."""
    return _ADDRESS.sub("", text)


def facts_of(value: Any) -> list[str]:
    """What the repr of an objective's part does not say: the values of its tensors, and the code
    of the user's functions with all that they have closed over.

    Numbers that are 0-d tensors are knobs, whose values may have moved; they are left out.
    """
    facts: list[str] = []
    _collect(value, facts, set())
    return facts


def _collect(value: Any, facts: list[str], seen: set[int]) -> None:
    if id(value) in seen or isinstance(value, (str, bytes, type, types.ModuleType, nn.Module)):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        if value.ndim:
            facts.append(f"tensor {digest_of([('', value)])}")
    elif isinstance(value, types.FunctionType):
        if not _of_library(value):
            facts.append(f"function {value.__qualname__} {_code(value.__code__)}")
        cells = [_content(cell) for cell in value.__closure__ or ()]
        for inner in (*cells, value.__defaults__, value.__kwdefaults__):
            _note(inner, facts, seen)
    elif isinstance(value, types.MethodType):
        _collect(value.__func__, facts, seen)
        _note(value.__self__, facts, seen)
    else:
        for inner in _parts(value):
            _collect(inner, facts, seen)


def _note(value: Any, facts: list[str], seen: set[int]) -> None:
    """A value that no repr shows."""
    if isinstance(value, (int, float, str, bytes)):
        facts.append(f"value {value!r}")
    elif isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        for inner in value:
            _note(inner, facts, seen)
    else:
        _collect(value, facts, seen)


def _parts(value: Any) -> list[Any]:
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (tuple, list)):
        return list(value)
    if dataclasses.is_dataclass(value):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    if type(value).__module__.startswith("fkd."):
        slots = [getattr(value, n, None) for n in getattr(type(value), "__slots__", ())]
        return [*slots, *getattr(value, "__dict__", {}).values()]
    return []


def _of_library(function: types.FunctionType) -> bool:
    return (function.__module__ or "").split(".")[0] in ("fkd", "torch", "transformers")


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that was not set
        return None


def _code(code: types.CodeType) -> str:
    """A digest of what a function does, without where it stands in its file."""
    sha256 = hashlib.sha256(code.co_code)
    sha256.update(repr((code.co_names, code.co_varnames)).encode())
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            sha256.update(_code(constant).encode())
        elif isinstance(constant, frozenset):
            sha256.update(repr(sorted(map(repr, constant))).encode())
        else:
            sha256.update(repr(constant).encode())
    return sha256.hexdigest()[:16]
