"""What is wrong with the pages: links that lead nowhere, names that do not exist, names that no page
describes."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping

from .names import unknown
from .recipes import heading_id
from .reference import packages, public_names

NAV = re.compile(r"[:-]\s+([\w/.-]+\.md)\s*$", re.MULTILINE)


def problems(pages: Mapping[str, bytes]) -> list[str]:
    """One line for each.

    Args:
      pages: of `pages()`: by path, with the configuration as `mkdocs.yml`.
    """
    texts = {name: text.decode() for name, text in pages.items() if name.endswith(".md")}
    navigation = pages["mkdocs.yml"].decode()
    return [
        *_links(texts, set(pages)),
        *_undescribed(texts),
        *unknown(texts),
        *_navigation(set(texts), navigation),
    ]


def _prose(text: str) -> str:
    """Without blocks and spans of code, in which brackets are no links."""
    text = re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^(?: {4}|\t).*$", "", text, flags=re.MULTILINE)
    return re.sub(r"(?<!\[)`[^`\n]*`(?!\])", "", text)


def anchors_of(text: str) -> set[str]:
    """The ids of a page: its headings, and the objects that it describes."""
    found = {heading_id(re.sub(r"[`*]", "", h)) for h in re.findall(r"^#+ (.+)$", text, re.M)}
    return found | set(re.findall(r"^::: ([\w.]+)", text, re.MULTILINE))


def _links(texts: Mapping[str, str], files: set[str]) -> Iterator[str]:
    for name, text in texts.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", _prose(text)):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            whole = (
                posixpath.normpath(posixpath.join(posixpath.dirname(name), path)) if path else name
            )
            if whole not in files:
                yield f"{name}: {target} leads nowhere"
            elif anchor and whole in texts and anchor not in anchors_of(texts[whole]):
                yield f"{name}: {target}: there is no such place on {whole}"


def _undescribed(texts: Mapping[str, str]) -> Iterator[str]:
    described = {place for text in texts.values() for place in anchors_of(text)}
    for package in ("fkd.losses", "fkd.adapters", *packages()):
        for name in public_names(package):
            if f"{package}.{name}" not in described:
                yield f"{package}.{name} is on no page"


def _navigation(pages: set[str], configuration: str) -> Iterator[str]:
    listed = set(NAV.findall(configuration.split("\nnav:", 1)[1]))
    yield from (f"mkdocs.yml: {name} is not a page" for name in sorted(listed - pages))
    yield from (f"{name} is not in the nav of mkdocs.yml" for name in sorted(pages - listed))
