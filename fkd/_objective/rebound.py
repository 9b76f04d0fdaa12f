"""Forwards that were put onto an instance: in a copy of a module they are to run the copy."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

from torch import nn


def rebind_forwards(module: nn.Module, copied: nn.Module) -> None:
    """Let the forwards that a copy has from its original run the copy.

    Libraries put a function in place of a module's forward (`module.forward = ...`: tensor
    parallelism of transformers, hooks of accelerate) that has closed over the module. A copy would
    share the function, and with it run the original.
    """
    pairs = [*zip(module.modules(), copied.modules(), strict=True)]
    if not any("forward" in vars(original) for original, _ in pairs):
        return
    copies = {id(original): copy for original, copy in pairs}
    for original, copy in pairs:
        forward = vars(original).get("forward")
        if isinstance(forward, types.FunctionType):
            vars(copy)["forward"] = _rebound(forward, copies)


def _rebound(value: Any, copies: Mapping[int, nn.Module]) -> Any:
    """A value that a function has closed over, with the copies in place of the modules."""
    if id(value) in copies:
        return copies[id(value)]
    if isinstance(value, types.MethodType) and id(value.__self__) in copies:
        return types.MethodType(value.__func__, copies[id(value.__self__)])
    if not isinstance(value, types.FunctionType) or value.__closure__ is None:
        return value
    cells = tuple(_cell(cell, copies) for cell in value.__closure__)
    if all(a is b for a, b in zip(cells, value.__closure__, strict=True)):
        return value
    bound = types.FunctionType(
        value.__code__, value.__globals__, value.__name__, value.__defaults__, cells
    )
    bound.__kwdefaults__ = value.__kwdefaults__
    vars(bound).update({name: _rebound(x, copies) for name, x in vars(value).items()})
    return bound


def _cell(cell: types.CellType, copies: Mapping[int, nn.Module]) -> types.CellType:
    try:
        content = cell.cell_contents
    except ValueError:  # a variable that was not set
        return cell
    bound = _rebound(content, copies)
    return cell if bound is content else types.CellType(bound)
