"""What the docstring of a public name says, by section."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

SECTION = re.compile(r"^(Args|Attributes|Shape|Returns|Raises|Example|Reference):$", re.M)


def public(module: ModuleType) -> dict[str, Any]:
    """The functions and classes that a package exports, by name."""
    return {
        name: value
        for name, value in sorted(vars(module).items(), key=lambda item: item[0].lower())
        if not name.startswith("_") and callable(value)
    }


def sections(value: Any) -> dict[str, str]:
    """The docstring cut at its headings; what stands before the first is under ""."""
    parts = SECTION.split(inspect.getdoc(value) or "")
    return {"": parts[0], **dict(zip(parts[1::2], map(inspect.cleandoc, parts[2::2]), strict=True))}


def summary(value: Any) -> str:
    """The first line."""
    return sections(value)[""].split("\n", 1)[0]


def formula(value: Any) -> list[str]:
    """The lines of the first indented block."""
    match = re.search(r"\n\n((?:    .*\n?)+)", sections(value)[""])
    return [line.strip() for line in match.group(1).splitlines()] if match else []


def reference(value: Any) -> str:
    """The references, on one line."""
    return " ".join(sections(value).get("Reference", "").split())


def takes(fn: Callable[..., Any]) -> tuple[str, str]:
    """The positional arguments with their shapes, and the knobs with their defaults."""
    tensors: list[str] = []
    knobs: list[str] = []
    for name, parameter in inspect.signature(fn).parameters.items():
        shape = re.search(r"""Tensor, ["']([^"']*)["']""", str(parameter.annotation))
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        if parameter.kind is not parameter.KEYWORD_ONLY:
            tensors.append(f"{name} [{', '.join(shape[1].split())}]" if shape else name + default)
        elif name != "where":
            knobs.append(name + default)
        else:
            knobs.append("where")
    return ", ".join(tensors), ", ".join(knobs)
