"""Public objects as Markdown: what they are called with, and what their docstrings say."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import ForwardRef

WIDTH = 88
CONSTANTS = (int, float, str)
"""What is shown with its value."""
SECTION = re.compile(
    r"^(Args|Attributes|Returns|Yields|Raises|Example|Reference|References):$", re.MULTILINE
)
CODE = re.compile(r"^```.*?^```|^(?: {4}|\t)[^\n]*$", re.DOTALL | re.MULTILINE)
"""A program on a page."""
DESCRIBED = re.compile(r"^::: ([\w.]+)\n(?:    options:\n((?: {6}.*\n)+))?", re.MULTILINE)
"""An object on a page: its path, and the options that list its members."""


def rendered(page: str, objects: Callable[[str], object]) -> str:
    """A page of the reference with its objects written out.

    Args:
      page: Markdown with lines `::: path`.
      objects: gives the object of a path.
    """

    def written(found: re.Match[str]) -> str:
        path, options = found[1], found[2] or ""
        listed = re.search(r"members: (\[.*\])", options)
        members = json.loads(listed[1]) if listed else []
        return "\n".join(described(path, objects(path), members)) + "\n"

    return DESCRIBED.sub(written, page if page.endswith("\n") else f"{page}\n")


def described(path: str, value: object, members: Sequence[str] = ()) -> Iterator[str]:
    """The lines about an object, and about those of its members that have something to say."""
    yield from (f"## `{path}`", "", *_code(signature(path.rsplit(".", 1)[-1], value)))
    about = constant(path.rsplit(".", 1)[-1]) if isinstance(value, CONSTANTS) else None
    yield from (markdown((inspect.getdoc(value) if about is None else about) or ""), "")
    for name in members:
        member = inspect.getattr_static(value, name, None)
        if isinstance(member, property | functools.cached_property):
            read = member.fget if isinstance(member, property) else member.func
            result = inspect.signature(read).return_annotation if read else ""
            code = f"{name}: {_annotation(result)}"
        elif callable(function := getattr(value, name, None)):
            code = signature(name, function)
            member = function
        else:
            continue  # a field, which stands in the signature of its class
        yield from (f"### `{path}.{name}`", "", *_code(code))
        yield from (markdown(inspect.getdoc(member) or ""), "")


def constant(name: str) -> str:
    """The string below the line that gives a constant of fkd its value."""
    holders = [m for n, m in sorted(sys.modules.items()) if n.startswith("fkd.")]
    for module in (m for m in holders if name in vars(m)):
        lines = ast.parse(inspect.getsource(module)).body
        for line, below in itertools.pairwise(lines):
            given = isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == name
            text = below.value if isinstance(below, ast.Expr) else None
            if given and isinstance(text, ast.Constant) and isinstance(text.value, str):
                return text.value
    return ""


def _code(text: str) -> list[str]:
    return ["```python", text, "```", ""]


def signature(name: str, value: object) -> str:
    """A call with types and defaults: `kl(student_logits: Tensor, *, ...) -> Tensor`."""
    if isinstance(value, CONSTANTS):
        return f"{name}: {type(value).__name__} = {value!r}"
    if not callable(value):
        return f"{name}: {type(value).__name__}"
    try:
        read = inspect.signature(value)
    except (TypeError, ValueError):
        return name
    parts = list(_parameters([p for n, p in read.parameters.items() if n not in ("self", "cls")]))
    result = read.return_annotation
    arrow = "" if inspect.isclass(value) or result is read.empty else f" -> {_annotation(result)}"
    line = f"{name}({', '.join(parts)}){arrow}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){arrow}"])


def _parameters(parameters: Sequence[inspect.Parameter]) -> Iterator[str]:
    """Each as code, with `/` and `*` between them."""
    kinds = [p.kind for p in parameters]
    for i, p in enumerate(parameters):
        first_named = p.kind is p.KEYWORD_ONLY and p.KEYWORD_ONLY not in kinds[:i]
        if first_named and p.VAR_POSITIONAL not in kinds[:i]:
            yield "*"
        stars = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        typed = "" if p.annotation is p.empty else f": {_annotation(p.annotation)}"
        equals = " = " if typed else "="
        yield f"{stars}{p.name}{typed}" + ("" if p.default is p.empty else equals + _default(p))
        if p.kind is p.POSITIONAL_ONLY and p.POSITIONAL_ONLY not in kinds[i + 1 :]:
            yield "/"


def _annotation(annotation: object) -> str:
    if isinstance(annotation, str):
        return annotation
    if isinstance(annotation, ForwardRef):  # of a NamedTuple
        return annotation.__forward_arg__
    return inspect.formatannotation(annotation)


def _default(parameter: inspect.Parameter) -> str:
    """A default as code: functions by their names, what a dataclass makes anew as `...`."""
    if type(parameter.default).__name__ == "_HAS_DEFAULT_FACTORY_CLASS":
        return "..."
    text = repr(parameter.default)
    name = getattr(parameter.default, "__qualname__", type(parameter.default).__name__)
    return name if text.startswith("<") else text


def markdown(docstring: str) -> str:
    """A docstring with its sections as lists and programs."""
    first, *others = SECTION.split(docstring)
    parts = [first.strip("\n")]
    for title, text in zip(others[::2], others[1::2], strict=True):
        section, after = _indented(text)
        parts += [f"**{title}**", "\n".join(_section(title, section)), after]
    return "\n\n".join(part for part in parts if part)


def _indented(text: str) -> tuple[str, str]:
    """The lines that belong to a section, and those that come after it."""
    lines = text.strip("\n").splitlines()
    end = next((i for i, x in enumerate(lines) if x and not x.startswith(" ")), len(lines))
    return textwrap.dedent("\n".join(lines[:end])).rstrip(), "\n".join(lines[end:])


def _section(title: str, text: str) -> list[str]:
    if title == "Example":
        return ["```python", *text.splitlines(), "```"]
    if title in ("Returns", "Yields", "Reference", "References"):
        return text.splitlines()
    entry = re.compile(r"^[\w*`.\"\[\]]+(, [\w*`.\"\[\]]+)*: ")
    return [f"- {x}" if entry.match(x) else f"  {x.strip()}" for x in text.splitlines()]
