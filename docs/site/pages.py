"""All pages of the site as text, by their path: what is written by hand, and what is generated."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from . import benchmarks, programs, recipes, reference, tutorials, which
from .programs import title

DOCS = Path(__file__).parent.parent
ROOT = DOCS.parent
FIRST = ("recipes/index.md", "reference/fkd.md", "reference/losses.md")
BY_HAND = (".md", ".svg", ".css", ".png")


def pages() -> dict[str, bytes]:
    """`{path: content}`."""
    made: dict[str, bytes] = {
        str(path.relative_to(DOCS)): path.read_bytes()
        for path in sorted(DOCS.rglob("*"))
        if path.suffix in BY_HAND and "site" not in path.relative_to(DOCS).parts
    }
    generated: dict[str, str] = {
        "which-loss.md": which.page(),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        "contributing.md": _contributing(),
        **recipes.pages(),
        **reference.pages(),
        **benchmarks.pages(),
        **tutorials.pages(),
    }
    made |= {name: text.encode() for name, text in generated.items()}
    made["mkdocs.yml"] = _navigation(made).encode()
    return made | {name: text.encode() for name, text in programs.lists(made).items()}


def _contributing() -> str:
    return (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def _navigation(made: Mapping[str, bytes]) -> str:
    """The configuration, with the generated pages in its nav: index pages first."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for heading, folder in (("Recipes by paper", "recipes"), ("Reference", "reference")):
        names = [n for n in made if n.startswith(f"{folder}/") and n.endswith(".md")]
        names.sort(key=lambda n: (n not in FIRST, n))
        lines = [f"      - {_short(made[name].decode())}: {name}" for name in names]
        marker = f"  - {heading}: []  # generated"
        if marker not in text:
            raise ValueError(f"mkdocs.yml: the line {marker!r} is missing")
        text = text.replace(marker, "\n".join([f"  - {heading}:", *lines]))
    pages_of = [n for n in made if n.endswith(".md") and f" {n}\n" not in text]
    lines = [f"      - {_short(made[name].decode())}: {name}" for name in sorted(pages_of)]
    return "\n".join([text.rstrip(), *(["  - More:", *lines] if lines else []), ""])


def _short(text: str) -> str:
    """A title for the navigation, as YAML."""
    words = title(text).removeprefix("Recipes: ")
    words = re.sub(r"^.*: `(.+)`$", r"\1", words)
    return json.dumps(words[:1].upper() + words[1:] if not words.startswith("fkd") else words)
