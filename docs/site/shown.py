"""Whether the site that was built shows the signatures that functions have."""

from __future__ import annotations

import ast
import html
import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from fkd._catalogue.entries import entries

from .reference import MADE_BY_FKD, members, packages, public_names

BOUND = ("self", "cls")
Arguments = Mapping[str, bool]
"""By the name of an argument, whether it has a default."""


def wrong_signatures(site: Path) -> Iterator[str]:
    """One line for each public function or class that a page shows with other arguments.

    Args:
      site: the folder of the HTML.
    """
    text = "\n".join(p.read_text(encoding="utf-8") for p in sorted(site.glob("reference/*.html")))
    objects = {
        path: value for name, value in public().items() for path, value in _with(name, value)
    }
    described = {path: (value, arguments_of(value)) for path, value in objects.items()}
    shown = {path: _shown(text, path) for path in described}
    right = {id(value) for path, (value, true) in described.items() if shown[path] == true}
    for path, (value, true) in described.items():
        if true is not None and id(value) not in right:  # another name of it is as good
            yield f"{path} is shown with {_listed(shown[path])}; it has {_listed(true)}"


def public() -> dict[str, object]:
    """Every public object that a page of the reference describes, by its path."""
    found: dict[str, object] = {}
    for package in packages():
        module = importlib.import_module(package)
        found |= {f"{package}.{name}": getattr(module, name) for name in public_names(package)}
    return {**found, **{entry.path: entry.value for entry in entries()}}


def _with(path: str, value: object) -> Iterator[tuple[str, object]]:
    """An object and its methods."""
    yield path, value
    for name in members(value):
        method = getattr(value, name, None)
        if inspect.isfunction(method) or inspect.ismethod(method):
            yield f"{path}.{name}", method


def arguments_of(value: object) -> Arguments | None:
    """Of a function, or of a class with an `__init__` of its own; None of anything else: records
    are shown by their fields."""
    if inspect.isclass(value):
        if value in MADE_BY_FKD:
            return None
        init = getattr(vars(value).get("__init__"), "__code__", None)
        if init is None or init.co_filename != inspect.getsourcefile(value):
            return None
    elif not (inspect.isfunction(value) or inspect.ismethod(value)):
        return None
    parameters = inspect.signature(value).parameters
    return {n: p.default is not p.empty for n, p in parameters.items() if n not in BOUND}


def _shown(text: str, path: str) -> Arguments | None:
    """What stands in the signature below the heading of an object."""
    heading = rf'id="{re.escape(path)}" class="doc doc-heading"'
    rest = r'(?:(?!doc-heading).)*?<div class="[^"]*doc-signature[^"]*">(.*?)</div>'
    found = re.search(heading + rest, text, re.DOTALL)
    code = html.unescape(re.sub(r"<[^>]+>", "", found[1])).strip() if found else ""
    try:
        [function] = ast.parse(f"def {code}: ...").body
    except SyntaxError:
        return None
    assert isinstance(function, ast.FunctionDef)
    return _of_code(function.args)


def _of_code(args: ast.arguments) -> Arguments:
    positional = [*args.posonlyargs, *args.args]
    without = len(positional) - len(args.defaults)
    found = {a.arg: i >= without for i, a in enumerate(positional)}
    found |= {args.vararg.arg: False} if args.vararg else {}
    found |= {a.arg: d is not None for a, d in zip(args.kwonlyargs, args.kw_defaults, strict=True)}
    found |= {args.kwarg.arg: False} if args.kwarg else {}
    return {name: default for name, default in found.items() if name not in BOUND}


def _listed(arguments: Arguments | None) -> str:
    if arguments is None:
        return "no signature"
    return f"({', '.join(f'{n}=' if default else n for n, default in arguments.items())})"
