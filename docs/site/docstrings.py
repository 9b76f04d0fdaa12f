"""A griffe extension for docstrings as fkd writes them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import griffe

SEVERAL = re.compile(r"^( +)(\w+)((?:, \w+)+): ")


class Docstrings(griffe.Extension):
    """`Example:` is the section of programs that griffe calls `Examples:`, so that what follows is
    shown as a program; and `a, b: text` describes two arguments, each with its type and default."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """For every object that was read."""
        if obj.docstring is not None:
            text = re.sub(
                r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE
            )
            obj.docstring.value = "\n".join(_each_argument(text.split("\n")))


def _each_argument(lines: list[str]) -> Iterator[str]:
    """The first of several names keeps the text; the others, below it, say where that is."""
    waiting: list[str] = []
    section, depth = "", 0
    for line in lines:
        if waiting and len(line) - len(line.lstrip()) <= depth:
            yield from waiting
            waiting = []
        if line[:1].strip():
            section = line
        several = SEVERAL.match(line) if section in ("Args:", "Attributes:") else None
        if several:
            indent, first, others = several.groups()
            depth = len(indent)
            waiting = [f"{indent}{name}: see `{first}`." for name in others[2:].split(", ")]
            line = f"{indent}{first}: {line[several.end() :]}"
        yield line
    yield from waiting
