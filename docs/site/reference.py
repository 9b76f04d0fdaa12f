"""The API: one page for each package, and the losses by family."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from types import ModuleType

from fkd._catalogue.entries import Entry, entries

TITLES = {"fkd": "Objectives, models, refs"}
WITH_PAGES_OF_THEIR_OWN = ("fkd.losses", "fkd.adapters", "fkd.losses.head")
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
        f"::: {package}.{name}{_members(getattr(module, name))}" for name in names
    )
    title = TITLES.get(package, package.rsplit(".", 1)[-1].replace("_", " ").capitalize())
    return f"# {title}: `{package}`\n\n{_plain(about)}\n\n{listed}\n\n{objects}\n"


def _members(value: object) -> str:
    """Of a class only what is public, and `__call__` where that is described."""
    if not inspect.isclass(value):
        return ""
    names = dict.fromkeys([*vars(value).get("__annotations__", ()), *vars(value)])
    shown = [name for name in names if not name.startswith("_")]
    shown += ["__call__"] if getattr(vars(value).get("__call__"), "__doc__", None) else []
    return f"\n    options:\n      members: [{', '.join(shown)}]"


def _plain(text: str) -> str:
    return text.replace("<", "&lt;") if "`" not in text else text


def _family(family: str, members: list[Entry]) -> str:
    rows = "\n".join(
        f"| [`{e.name}`](#{e.path}) | {_cell(e.summary)} | {_cell(e.cost) or 'linear'} |"
        for e in members
    )
    objects = "\n\n".join(
        f"::: {entry.path}{_members(entry.value)}{_uses(entry)}" for entry in members
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
