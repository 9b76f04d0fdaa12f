"""Whether an objective is the same as before: digests of what its repr does not say."""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import re
import types
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._base.digest import digest_of
from .reads import changed_by_methods, globals_read, of_library

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def without_addresses(text: str) -> str:
    """A repr without what differs from one process to the next."""
    return _ADDRESS.sub("", text)


def facts_of(value: Any) -> list[str]:
    """What the repr of an objective's part does not say: the values of its tensors, and the code
    of the user's functions with all that they have closed over and the global values they read.

    Numbers that are 0-d tensors are knobs, whose values may have moved; they are left out. So is
    what has neither a value nor code that can be compared (an open file, a generator): its kind
    alone is noted.
    """
    facts: list[str] = []
    _collect(value, facts, set())
    return facts


def module_facts(module: nn.Module) -> list[str]:
    """What `extra_repr` of a module of the user's does not say: the numbers and words that it has
    for attributes, and the code of its methods. Attributes that a method assigns are state."""
    kind, seen = type(module), set[int]()
    facts: list[str] = []
    if of_library(kind.__module__):
        return facts
    moving = changed_by_methods(kind) | {"training"}
    for name, value in sorted(vars(module).items()):
        if not name.startswith("_") and name not in moving and _is_plain(value):
            facts.append(f"{name}={value!r}")
    for owner in kind.__mro__:
        methods = {} if of_library(owner.__module__) else vars(owner)
        for name, method in methods.items():
            if isinstance(method, types.FunctionType) and not name.startswith("__"):
                _collect(method, facts, seen)
    return facts


def _collect(value: Any, facts: list[str], seen: set[int]) -> None:
    """Note what is not shown of a value that a repr shows."""
    if id(value) in seen or isinstance(value, (str, bytes, type, types.ModuleType, nn.Module)):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        if value.ndim:
            facts.append(f"tensor {digest_of([('', value)])}")
    elif isinstance(value, types.FunctionType):
        _function(value, facts, seen)
    elif isinstance(value, types.MethodType):
        _collect(value.__func__, facts, seen)
        _note(value.__self__, facts, seen)
    elif _has_own_code(value):
        _called(value, facts, seen)
    else:
        for inner in _parts(value):
            _collect(inner, facts, seen)


def _function(function: types.FunctionType, facts: list[str], seen: set[int]) -> None:
    if (function.__module__ or "").split(".")[0] not in ("fkd", "torch", "transformers"):
        facts.append(f"function {function.__qualname__} {_code(function.__code__)}")
    cells = [_content(cell) for cell in function.__closure__ or ()]
    for inner in (*cells, function.__defaults__, function.__kwdefaults__):
        _note(inner, facts, seen)
    for name, value in [] if of_library(function.__module__) else globals_read(function):
        noted: list[str] = []
        _note(value, noted, seen)
        if isinstance(value, types.FunctionType):
            facts += noted
        elif noted:
            facts.append(f"global {name} = {', '.join(noted).removeprefix('value ')}")


def _called(value: Any, facts: list[str], seen: set[int]) -> None:
    """Note an object of the user's that is called as a function: its code, and what it holds."""
    _collect(type(value).__call__, facts, seen)
    moving = changed_by_methods(type(value))
    for name, inner in sorted(vars(value).items()):
        noted: list[str] = []
        if name not in moving:
            _note(inner, noted, seen)
        facts += [f"{name} = {', '.join(noted).removeprefix('value ')}"] if noted else []


def _note(value: Any, facts: list[str], seen: set[int]) -> None:
    """Note a value that no repr shows."""
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        facts.extend([] if value is None else [f"value {_short(repr(value))}"])
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            facts.append(f"key {_short(without_addresses(repr(key)))}")
            _note(inner, facts, seen)
    elif isinstance(value, (set, frozenset)):
        facts.append(f"value {_short(repr(sorted(map(repr, value))))}")
    elif isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        if id(value) in seen:
            return
        seen.add(id(value))
        for inner in value:
            _note(inner, facts, seen)
    elif isinstance(value, types.SimpleNamespace):
        _note(vars(value), facts, seen)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        if not of_library(type(value).__module__) and id(value) not in seen:
            seen.add(id(value))
            _note({f.name: getattr(value, f.name) for f in dataclasses.fields(value)}, facts, seen)
        else:
            _collect(value, facts, seen)
    elif isinstance(value, (torch.dtype, torch.device, torch.Size, enum.Enum)):
        facts.append(f"value {value}")
    else:
        _collect(value, facts, seen)


def _has_own_code(value: Any) -> bool:
    """Whether it is an object of a class of the user's that is called as a function."""
    kind = type(value)
    return (
        callable(value)
        and isinstance(kind.__call__, types.FunctionType)
        and not of_library(kind.__module__)
        and hasattr(value, "__dict__")
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return isinstance(value, (bool, int, float, str, type(None), torch.dtype))


def _short(text: str) -> str:
    """A text, or of a long one its digest."""
    return text if len(text) <= 60 else hashlib.sha256(text.encode()).hexdigest()[:16]


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
