"""The entries of the catalogue, and the search in them."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import fkd.adapters
import fkd.losses

from .data import ADAPTERS, COSTS
from .docstrings import formula, public, reference, sections, summary
from .uses import USES

HEAD, ADAPTER = "Language-model heads", "Adapters"


@dataclass(frozen=True)
class Entry:
    """A loss, or an adapter.

    Attributes:
      name: as `fkd.losses` or `fkd.adapters` exports it.
      value: the function or class.
      family: the title of the room it stands in.
      order: of the family.
      path: where to import it from.
      cost: where it is not linear in the inputs; else empty.
      adapters: that go with it.
      uses: what it is for: "has; wants" of the table of uses.
    """

    name: str
    value: Any
    family: str
    order: int
    path: str
    cost: str = ""
    adapters: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return summary(self.value)

    @property
    def formula(self) -> list[str]:
        """The equation, line by line."""
        return formula(self.value)

    @property
    def reference(self) -> str:
        """Its papers."""
        return reference(self.value)


@functools.cache
def families() -> tuple[ModuleType, ...]:
    """The folders of losses; a family is what stands in one."""
    inside = sorted(module.name for module in pkgutil.iter_modules(fkd.losses.__path__))
    folders = [name for name in inside if name.startswith("_")]
    return tuple(importlib.import_module(f"fkd.losses.{name}") for name in folders)


def title_of(family: ModuleType) -> str:
    """What a family compares."""
    return (family.__doc__ or "").strip().rstrip(".")


@functools.cache
def entries() -> tuple[Entry, ...]:
    """Every loss and every adapter, by family and name."""
    return tuple(sorted(_entries(), key=lambda entry: (entry.order, entry.name.lower())))


def _entries() -> Iterator[Entry]:
    rooms = families()
    titles = [title_of(room) for room in rooms]
    for name, value in public(fkd.losses).items():
        place = next((i for i, r in enumerate(rooms) if _is_in(value, r.__name__)), len(rooms))
        family = titles[place] if place < len(rooms) else HEAD
        yield Entry(
            name,
            value,
            family,
            place,
            f"fkd.losses.{name}",
            COSTS.get(name, ""),
            ADAPTERS.get(name, ()),
            tuple(f"{use.has}; {use.wants}" for use in USES if name in use.losses),
        )
    for name, value in public(fkd.adapters).items():
        uses = tuple(f"{use.has}; {use.wants}" for use in USES if name in use.adapters)
        path = f"fkd.adapters.{name}"
        yield Entry(name, value, ADAPTER, len(rooms) + 1, path, uses=uses)


def _is_in(value: Any, room: str) -> bool:
    return value.__module__ == room or value.__module__.startswith(f"{room}.")


def search(words: Sequence[str]) -> list[Entry]:
    """The entries in which every word is found, the best first: a word counts for more in the
    name than in the summary, there for more than in the uses, family and paper, and least in the
    rest of the docstring.

    Args:
      words: no difference is made between "-", "_" and capital letters.

    Example:
      >>> [entry.name for entry in search(["dkd"])][:1]
      ['dkd']
      >>> "infonce" in [entry.name for entry in search(["contrastive"])]
      True
    """
    scored = [(min((_score(entry, w) for w in words), default=1), entry) for entry in entries()]
    matching = [(score, entry) for score, entry in scored if score]
    return [entry for _, entry in sorted(matching, key=lambda pair: -pair[0])]


def _score(entry: Entry, word: str) -> int:
    wanted = _plain(word)
    texts = (
        (2, " ".join(sections(entry.value).values())),
        (4, " ".join([entry.family, entry.reference, entry.cost, *entry.uses])),
        (8, entry.summary),
        (16, entry.name),
    )
    best = max((weight for weight, text in texts if wanted in _plain(text)), default=0)
    return 32 if wanted == _plain(entry.name) else best


def _plain(text: str) -> str:
    return text.lower().replace("_", "").replace("-", "")
