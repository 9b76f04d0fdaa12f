"""English sentences that every machine has: those of the docstrings of installed packages."""

from __future__ import annotations

import ast
import importlib.util
import random
import re
from collections.abc import Iterable
from pathlib import Path

PACKAGES = ("sklearn", "scipy", "numpy", "torch.nn", "torch.optim", "torch.distributed")
WORDS = range(6, 33)


def sentences_in(text: str) -> list[str]:
    """The sentences of a text that are prose: of some length, mostly letters, ending in a stop."""
    plain = re.sub(r"[`*]+|:\w+:", "", " ".join(text.split()))
    parts = re.split(r"(?<=[.!?])\s+(?=[A-Z])", plain)
    return [
        part
        for part in parts
        if part.endswith((".", "!", "?"))
        and len(part.split()) in WORDS
        and sum(c.isalpha() or c in " ,.'-" for c in part) > 0.95 * len(part)
    ]


def of_packages(packages: Iterable[str] = PACKAGES) -> list[str]:
    """Every sentence once, in an order of its own that is the same each time."""
    found: dict[str, None] = {}
    for name in packages:
        spec = importlib.util.find_spec(name)
        folders = spec.submodule_search_locations if spec else None
        for folder in folders or ():
            for path in sorted(Path(folder).rglob("*.py")):
                try:
                    tree = ast.parse(path.read_text(encoding="utf-8"))
                except (SyntaxError, UnicodeDecodeError):
                    continue
                for node in ast.walk(tree):
                    if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                        for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
                            found.update(dict.fromkeys(sentences_in(paragraph)))
    made = list(found)
    random.Random(0).shuffle(made)
    return made


def of_file(path: str | Path) -> list[str]:
    """The sentences of a text file, every one once."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return list(dict.fromkeys(s for line in lines for s in sentences_in(line)))
