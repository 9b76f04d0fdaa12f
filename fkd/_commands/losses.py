"""`python -m fkd losses WORD...`: find a loss by its name, paper, formula, family or use."""

from __future__ import annotations

import argparse
import inspect
import re
import textwrap

from .._base.errors import nearest
from .._catalogue.entries import Entry, entries, search
from .command import Command


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words", metavar="WORD", nargs="*",
        help="all must be found: 'kl', '2203.08679', 'different widths'; none lists everything",
    )  # fmt: skip
    parser.add_argument("--names", action="store_true", help="print the names only")


def _run(arguments: argparse.Namespace) -> int:
    words = [word for text in arguments.words for word in text.split()]
    matching = search(words)
    if not matching:
        names = [entry.name for entry in entries()]
        print(f"Nothing has {' and '.join(map(repr, words))}. {nearest(words[0], names)}".rstrip())
        return 1
    if arguments.names:
        print("\n".join(entry.name for entry in matching))
    elif words == [matching[0].name]:
        print(_whole(matching[0]))
        _and_others(matching[1:])
    else:
        family = ""
        for entry in sorted(matching, key=lambda e: e.order) if not words else matching:
            if not words and entry.family != family:
                family = entry.family
                print(f"\n{family}")
            print(f"  {entry.name:<24} {entry.summary}")
    return 0


def _whole(entry: Entry) -> str:
    """Everything that is known of one."""
    head = f"{entry.path}{_plain(str(inspect.signature(entry.value)))}"
    text = textwrap.indent(inspect.getdoc(entry.value) or "", "  ")
    lines = [head, "", text, "", f"  Family: {entry.family}"]
    lines += [f"  Cost: {entry.cost}"] if entry.cost else []
    lines += [f"  Adapters: {', '.join(entry.adapters)}"] if entry.adapters else []
    lines += [f"  For: {use}" for use in entry.uses]
    return "\n".join(lines)


def _plain(signature: str) -> str:
    """A signature without the quotes around its annotations."""
    return re.sub(r'"([^"]*)"', r"\1", re.sub(r"(: |-> )'([^']*)'", r"\1\2", signature))


def _and_others(others: list[Entry]) -> None:
    if others:
        print(f"\nAlso: {', '.join(entry.name for entry in others[:12])}")


COMMAND = Command("find a loss by name, paper, formula, family or use", _arguments, _run)
