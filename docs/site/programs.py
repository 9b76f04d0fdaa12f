"""The site for programs that read: `llms.txt` (https://llmstxt.org), all pages in one file, and the
pages of the reference as Markdown that is whole."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from .objects import rendered
from .shown import public

SECTION = re.compile(r"^  - (.+):$")
PAGE = re.compile(r"^      - (?:.*: )?([\w/.-]+\.md)$")
ORDER = ("Start", "How to", "Tutorials", "Reference", "Recipes by paper")
"""What is read first; all other sections follow."""
LAST = "benchmarks.md"
HEAD = """\
# fkd

> Functional, JAX-style knowledge distillation for PyTorch: an objective is a dict of
> terms over refs (`term(kl, student.logits, teacher.logits)`); fkd checks it, compiles
> forward passes, losses and gradient into one graph, and trains it resumably.
"""


def as_markdown(pages: Mapping[str, bytes]) -> dict[str, str]:
    """Every page by its path, those of the reference with signatures and docstrings.

    Args:
      pages: of `pages.pages()`, with `mkdocs.yml`.
    """
    objects = public()
    texts = {name: text.decode() for name, text in pages.items() if name.endswith(".md")}
    return {
        name: rendered(text, objects.__getitem__) if "\n::: " in text else text
        for name, text in texts.items()
    }


def lists(pages: Mapping[str, bytes]) -> dict[str, str]:
    """`llms.txt`: the pages with a line about each; `llms-full.txt`: all of them in one."""
    texts = as_markdown(pages)
    lines = [HEAD]
    sections = _sections(pages["mkdocs.yml"].decode())
    for section, names in sections.items():
        lines += [f"## {section}\n"]
        lines += [f"- [{title(texts[n])}]({n}): {_about(texts[n])}" for n in names] + [""]
    names = [name for section in sections.values() for name in section if name != LAST]
    whole = "\n\n".join(texts[name] for name in [*names, LAST])
    return {"llms.txt": "\n".join(lines), "llms-full.txt": whole}


def _sections(configuration: str) -> dict[str, Sequence[str]]:
    """The pages in the nav of `mkdocs.yml`, by section."""
    found: dict[str, list[str]] = {}
    for line in configuration.split("\nnav:", 1)[1].splitlines():
        if section := SECTION.match(line):
            found[section[1]] = []
        elif page := PAGE.match(line):
            [*found.values()][-1].append(page[1])
    first = [name for name in ORDER if name in found]
    return {name: found[name] for name in [*first, *(n for n in found if n not in first)]}


def title(text: str) -> str:
    """The first heading of a page."""
    found = re.search(r"^# (.+)$", text, re.MULTILINE)
    return found[1] if found else ""


def _about(text: str) -> str:
    """The first sentence after the heading."""
    after = re.sub(r"^# .+$", "", text, count=1, flags=re.MULTILINE).strip()
    prose = [p for p in after.split("\n\n") if p and not p.startswith("```")]
    first = next((p for p in prose if p[0].isalnum() or p[0] in "`*"), "")
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(first.split()))
    return re.split(r"(?<=[.!?]) ", plain)[0][:200]
