"""The one error of the library, and the help that goes into its messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class ObjectiveError(ValueError):
    """An objective that cannot be computed; lists every problem that was found.

    Attributes:
      problems: one message for each problem.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = f"{count} problem{'s' if count != 1 else ''} in the objective:"
        body = (f"  {i}. " + p.replace("\n", "\n     ") for i, p in enumerate(self.problems, 1))
        super().__init__("\n".join([head, *body]))


class RefError(ValueError):
    """A ref that does not resolve: the name is unknown or the index is out of range."""


def expect(
    function: str, name: str, value: object, kind: type | tuple[type, ...], what: str, fix: str = ""
) -> None:
    """Refuse an argument of another type, before it is used.

    Args:
      function: whose argument it is.
      name: of the argument.
      value: what was given.
      kind: the types that are meant. True and False are no numbers.
      what: these in words.
      fix: what to write instead.

    Raises:
      TypeError: it is of another type.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds):
        return
    got = "None" if value is None else f"a {type(value).__name__}"
    got = f"the class {value.__name__}" if isinstance(value, type) else got
    shown = f" ({value!r})" if isinstance(value, bool | int | float | str) else ""
    raise TypeError(f"{function}: {name} is {got}{shown}; {what} is expected. {fix}".rstrip())


def nearest(name: str, names: Iterable[str], *, limit: int = 3) -> str:
    """`"Did you mean 'a' or 'b'? "`, or nothing if no name is near."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=limit, cutoff=0.5)
    # A dotted path is often right but for its prefix: 'layer.2' for 'encoder.layer.2'.
    tails = [n for n in names if n.endswith("." + name) or n.split(".")[-1] == name]
    near = list(dict.fromkeys([*tails[:limit], *close]))[:limit]
    return f"Did you mean {' or '.join(map(repr, near))}? " if near else ""


def listing(names: Iterable[str], *, limit: int = 12) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    more = f", ... ({len(names) - limit} more)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more if names else "none"
