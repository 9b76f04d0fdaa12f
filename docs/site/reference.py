"""The API: one page for each package, and the losses by family."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import re
from types import ModuleType

import fkd
from fkd._catalogue.entries import Entry, entries

TITLES = {"fkd": "Objectives, models, refs"}
WITH_PAGES_OF_THEIR_OWN = ("fkd.losses", "fkd.adapters", "fkd.losses.head")
MADE_BY_FKD: tuple[type, ...] = (fkd.Ref, fkd.ModelRef)
"""Classes that nobody else makes objects of: how they are made is on no page."""
VALUES = ("batch", "student", "teacher", "__version__")


@functools.cache
def packages() -> tuple[str, ...]:
    """Every public package and module, `fkd` first; losses and adapters have other pages."""
    found = ["fkd"]
    for package in found:
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", ()):
            if isinstance(getattr(module, name), ModuleType):
                found.append(f"{package}.{name}")
    return tuple(p for p in found if p not in WITH_PAGES_OF_THEIR_OWN and public_names(p))


def public_names(package: str) -> list[str]:
    """What a package exports, values and modules apart."""
    module = importlib.import_module(package)
    listed = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == package
    ]
    values = (*VALUES, "losses")
    return [
        name
        for name in listed
        if name not in values and not isinstance(getattr(module, name), ModuleType)
    ]


def pages() -> dict[str, str]:
    """`{path: page}`."""
    made = {f"reference/{page_of(package)}.md": _package(package) for package in packages()}
    families: dict[str, list[Entry]] = {}
    for entry in entries():
        families.setdefault(entry.family, []).append(entry)
    for family, members in families.items():
        made[_path(family)] = _family(family, members)
    return {**made, "reference/losses.md": _all_losses(families)}


def page_of(package: str) -> str:
    """The name of a package's page: `interop-torchao`."""
    return package.removeprefix("fkd.").replace(".", "-").replace("_", "-")


def _slug(family: str) -> str:
    return re.sub(r"[^a-z]+", "-", family.lower()).strip("-")


def _path(family: str) -> str:
    return (
        "reference/adapters.md" if family == "Adapters" else f"reference/losses-{_slug(family)}.md"
    )


@functools.cache
def anchors() -> dict[str, str]:
    """Where each loss and adapter is described, from the root of the site."""
    return {entry.name: f"{_path(entry.family)}#{entry.path}" for entry in entries()}


def _package(package: str) -> str:
    module = importlib.import_module(package)
    about = (module.__doc__ or "").strip()
    names = public_names(package)
    listed = ", ".join(f"[`{name}`](#{package}.{name})" for name in names)
    objects = "\n\n".join(
        f"::: {package}.{name}{_options(getattr(module, name))}" for name in names
    )
    title = TITLES.get(package, package.rsplit(".", 1)[-1].replace("_", " ").capitalize())
    return f"# {title}: `{package}`\n\n{_plain(about)}\n\n{listed}\n\n{objects}\n"


def members(value: object) -> list[str]:
    """Of a class what is public, and `__call__` where that is described; with what it has from
    classes that are on no page."""
    if not inspect.isclass(value):
        return []
    names = [
        name
        for kind in (value, *_private_bases(value))
        for name in (*vars(kind).get("__annotations__", ()), *vars(kind))
        if not name.startswith("_")
    ]
    names += ["__call__"] if getattr(vars(value).get("__call__"), "__doc__", None) else []
    return [*dict.fromkeys(names)]


def _options(value: object) -> str:
    """How mkdocstrings shows a class."""
    if not inspect.isclass(value):
        return ""
    options = [f"members: {json.dumps(members(value))}"]  # quoted: `on` is a bool in YAML
    options += ["inherited_members: true"] if _private_bases(value) else []
    options += ["merge_init_into_class: false"] if value in MADE_BY_FKD else []
    return "".join(["\n    options:", *(f"\n      {option}" for option in options)])


def _private_bases(value: type) -> list[type]:
    return [kind for kind in value.__mro__[1:] if _is_private(kind)]


def _is_private(kind: type) -> bool:
    """Whether it is one of fkd's classes that is on no page."""
    if not kind.__module__.startswith("fkd."):
        return False
    return all(
        kind is not getattr(importlib.import_module(package), kind.__name__, None)
        for package in packages()
    )


def _plain(text: str) -> str:
    return text.replace("<", "&lt;") if "`" not in text else text


def _family(family: str, members: list[Entry]) -> str:
    rows = "\n".join(
        f"| [`{e.name}`](#{e.path}) | {_cell(e.summary)} | {_cell(e.cost) or 'linear'} |"
        for e in members
    )
    objects = "\n\n".join(
        f"::: {entry.path}{_options(entry.value)}{_uses(entry)}" for entry in members
    )
    table = f"| name | what it is | cost |\n| --- | --- | --- |\n{rows}"
    return f"# {family}\n\n{table}\n\n{objects}\n"


def _uses(entry: Entry) -> str:
    lines = [f"- For: {use}." for use in entry.uses]
    adapters = ", ".join(f"[`{a}`](../{anchors()[a]})" for a in entry.adapters)
    lines += [f"- Adapters: {adapters}."] if adapters else []
    return "\n\n" + "\n".join(lines) if lines else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _all_losses(families: dict[str, list[Entry]]) -> str:
    count = sum(len(members) for family, members in families.items() if family != "Adapters")
    parts = [
        "# Losses\n",
        f"{count} functions in {len(families) - 1} families. Every loss is a pure function of "
        "tensors, `loss(student_x, teacher_x, *, knobs, where=None)`, and returns one value for "
        "each position, unreduced; a term of an objective takes the mean over those that count. "
        "Search this site, or run `python -m fkd losses WORD`; [Which loss?](../which-loss.md) "
        "goes by what you have.\n",
    ]
    for family, members in families.items():
        parts += [f"## {family}\n", "| name | what it is | formula | paper |", "| --- " * 4 + "|"]
        parts += [_row(entry) for entry in members] + [""]
    return "\n".join(parts)


def _row(entry: Entry) -> str:
    code = "<br>".join(f"`{' '.join(line.split())}`" for line in entry.formula)
    name = f"[`{entry.name}`](../{anchors()[entry.name]})"
    paper = re.sub(
        r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", entry.reference
    )
    return f"| {name} | {_cell(entry.summary)} | {_cell(code)} | {_cell(paper)} |"
