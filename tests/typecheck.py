"""The run-time type check: `pytest --jaxtyping-packages=fkd,tests.typecheck.checker`.

A function inside another one is decorated anew at every call of that one. What checks it depends on
its signature alone (jaxtyping checks by a function without a body that has the same), so it is made
once for each signature: a fifth of the time of all tests went into making it again.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_checked: Callable[[Any], Any] = beartype(conf=BeartypeConf(is_pep484_tower=True))
_functions: dict[Any, Any] = {}


def checker(fn: Any) -> Any:
    """A function of jaxtyping, or a class, that checks its arguments and its result."""
    if not isinstance(fn, types.FunctionType) or fn.__closure__:
        return _checked(fn)
    # The functions that are kept hold the default values, whose ids therefore stay theirs.
    defaults = *map(id, fn.__defaults__ or ()), *map(id, (fn.__kwdefaults__ or {}).values())
    hints = tuple(fn.__annotations__.items())
    key = fn.__module__, fn.__qualname__, fn.__code__, defaults, hints
    try:
        if key not in _functions:
            _functions[key] = _checked(fn)
    except TypeError:  # a hint without a hash
        return _checked(fn)
    return _functions[key]
