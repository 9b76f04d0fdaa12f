"""A griffe extension: a function `@called_with(Record)` is shown with the fields of its record."""

from __future__ import annotations

from typing import Any

import griffe

DECORATOR = "fkd._base.arguments.called_with"


class Signatures(griffe.Extension):
    """Fills in what `called_with` does when fkd is imported, since griffe reads without importing.

    It stands after griffe's own extension `dataclasses`, which knows the fields of a record and of
    the records that it inherits from.
    """

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """For a package that was read as a whole."""
        _fill(pkg)


def _fill(parent: griffe.Module) -> None:
    for member in parent.members.values():
        if isinstance(member, griffe.Module):
            _fill(member)
        elif isinstance(member, griffe.Function):
            record = _record(member)
            if record is not None:
                fields = [_plain(p, record) for p in record.parameters if p.name != "self"]
                member.parameters = griffe.Parameters(*fields)


def _record(function: griffe.Function) -> griffe.Class | None:
    """The dataclass that a function is called with."""
    for decorator in function.decorators:
        call = decorator.value
        if isinstance(call, griffe.ExprCall) and call.canonical_path == DECORATOR:
            argument = call.arguments[0]
            path = argument if isinstance(argument, str) else argument.canonical_path
            record = function.modules_collection[path]
            return record.final_target if isinstance(record, griffe.Alias) else record
    return None


def _plain(parameter: griffe.Parameter, record: griffe.Class) -> griffe.Parameter:
    """With its default written out where that is the name of a string in the record's file."""
    constant = record.module.members.get(str(parameter.default))
    if isinstance(constant, griffe.Attribute) and str(constant.value)[:1] in "'\"":
        parameter.default = constant.value
    return parameter
