"""What a recipe is."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

import fkd


@dataclass(frozen=True)
class Recipe:
    """A published method.

    Attributes:
      title: its name.
      paper: "arXiv:1503.02531", or where it was published.
      terms: a function that returns the terms; its body is what is shown.
      models: makes small models to run it on, by name.
      data: makes a batch for them.
      note: what to know before one uses it.
    """

    title: str
    paper: str
    terms: Callable[[], Any]
    models: Callable[[], dict[str, Any]]
    data: Callable[[], dict[str, torch.Tensor]]
    note: str = ""

    @property
    def source(self) -> str:
        """The terms as a program: the body of `terms` after the imports that it needs."""
        text = inspect.getsource(self.terms).split("\n", 1)[1]
        body = textwrap.dedent(text).replace("return {", "terms = {")
        functions = _functions(body, vars(inspect.getmodule(self.terms)))
        code = "\n\n".join([*functions, body]).replace("  # fmt: skip", "").rstrip()
        return "\n".join([*_imports(code), "", code])

    @property
    def losses(self) -> list[str]:
        """The losses that its terms use, in the order in which they come."""
        names = (node.id for node in _names(self.source))
        functions = {n for n in fkd.losses.__all__ if not inspect.ismodule(getattr(fkd.losses, n))}
        return [n for n in dict.fromkeys(names) if n in functions]


def _names(code: str) -> Iterator[ast.Name]:
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)]
    return iter(sorted(nodes, key=lambda node: (node.lineno, node.col_offset)))


def _functions(code: str, names: dict[str, Any]) -> list[str]:
    """The functions of a file that a program calls."""
    called = dict.fromkeys(node.id for node in _names(code))
    values = [names[name] for name in called if inspect.isfunction(names.get(name))]
    return [inspect.getsource(v) for v in values if v.__module__ == names["__name__"]]


def _imports(code: str) -> list[str]:
    """The imports of the names that a program takes from torch and fkd."""
    names = {node.id for node in _names(code)}
    lines = [f"import {name}" for name in ("torch", "fkd") if name in names]
    for module in (fkd, fkd.losses):
        found = sorted(names & set(module.__all__))
        lines += [f"from {module.__name__} import {', '.join(found)}"] if found else []
    return lines
