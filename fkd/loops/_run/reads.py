"""What a function reads beside its arguments: global names, and what is behind them."""

from __future__ import annotations

import dis
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

_LIBRARIES = frozenset(("fkd", "torch", "transformers", "builtins"))
_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")
_CHANGES = frozenset(
    "append extend insert pop popitem remove clear sort reverse update setdefault add discard "
    "appendleft popleft".split()
)


class Read(NamedTuple):
    """A global name that a function reads.

    Attributes:
      name: as it stands in the code, `SCALE` or `config.scale`.
      value: behind it.
    """

    name: str
    value: object


def globals_read(function: types.FunctionType) -> list[Read]:
    """The global names that a function reads, without those of libraries, and without those that a
    function beside it assigns: such a one is a counter, or moves as a knob does.

    A container that the function itself changes is left out likewise.
    """
    scope = function.__globals__
    names = dict.fromkeys(_paths(function.__code__))
    assigned = _assigned(scope) if names else frozenset[str]()
    reads = (_read(scope, path) for path in names if path[0] not in assigned)
    changes = _changes_items(function.__code__)
    return [
        read
        for read in reads
        if read is not None
        and not (isinstance(read.value, types.ModuleType) or (changes and _is_mutable(read.value)))
    ]


def of_library(module: str | None) -> bool:
    """Whether a module comes with Python, PyTorch, fkd or another installed package."""
    root = (module or "").partition(".")[0]
    if root in _LIBRARIES or root in sys.stdlib_module_names - {"__main__"}:
        return True
    file = getattr(sys.modules.get(root), "__file__", None) or ""
    return "site-packages" in file or "dist-packages" in file


def changed_by_methods(kind: type) -> frozenset[str]:
    """The attributes of an object that methods of its class assign after it was made."""
    methods = [
        method
        for owner in kind.__mro__
        if not of_library(owner.__module__)
        for name, method in vars(owner).items()
        if isinstance(method, types.FunctionType) and name not in ("__init__", "__post_init__")
    ]
    return frozenset(i.argval for m in methods for i in _instructions(m.__code__)
                     if i.opname == "STORE_ATTR")  # fmt: skip


def _paths(code: types.CodeType) -> Iterator[tuple[str, ...]]:
    """Global names with the attributes that are taken of them, `("config", "scale")`."""
    path: tuple[str, ...] = ()
    for instruction in _instructions(code):
        if path and instruction.opname in _ATTRIBUTES:
            path = (*path, instruction.argval)
            continue
        if path:
            yield path
        path = (instruction.argval,) if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME") else ()
    if path:
        yield path


def _instructions(code: types.CodeType) -> Iterator[dis.Instruction]:
    yield from dis.get_instructions(code)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _instructions(inner)


def _read(scope: Mapping[str, Any], path: tuple[str, ...]) -> Read | None:
    """The value behind a name, as far as it can be looked up without running code."""
    if path[0] not in scope:
        return None  # of the builtins, or not there yet
    value, name = scope[path[0]], path[0]
    for attribute in path[1:]:
        if isinstance(value, types.ModuleType) and of_library(value.__name__):
            return None
        if isinstance(value, types.FunctionType) or not _has(value, attribute):
            break
        value, name = _attribute(value, attribute), f"{name}.{attribute}"
    return Read(name, value)


def _has(value: object, attribute: str) -> bool:
    return _attribute(value, attribute) is not _MISSING


_MISSING = object()


def _attribute(value: object, attribute: str) -> object:
    """An attribute that is stored: of a module, an object or a class."""
    owners = value.__mro__ if isinstance(value, type) else (value,)
    if not isinstance(value, types.ModuleType) and of_library(_module_of(value)):
        return _MISSING
    stored = (getattr(owner, "__dict__", {}).get(attribute, _MISSING) for owner in owners)
    return next((x for x in stored if x is not _MISSING), _MISSING)


def _module_of(value: object) -> str:
    kind = value if isinstance(value, type) else type(value)
    # A plain record of values has no code of its own.
    return "" if kind is types.SimpleNamespace else kind.__module__


def _assigned(scope: Mapping[str, Any]) -> frozenset[str]:
    """The global names that functions and methods of a module assign."""
    functions: list[types.FunctionType] = []
    for value in list(scope.values()):
        inside = vars(value).values() if isinstance(value, type) else (value,)
        functions += [f for f in inside if isinstance(f, types.FunctionType)]
    codes = (f.__code__ for f in functions if f.__globals__ is scope)
    return frozenset(
        i.argval for code in codes for i in _instructions(code) if i.opname == "STORE_GLOBAL"
    )


def _changes_items(code: types.CodeType) -> bool:
    """Whether a function changes items of something."""
    return any(
        i.opname in ("STORE_SUBSCR", "DELETE_SUBSCR")
        or (i.opname in _ATTRIBUTES and i.argval in _CHANGES)
        for i in _instructions(code)
    )


def _is_mutable(value: object) -> bool:
    return isinstance(value, list | dict | set)
