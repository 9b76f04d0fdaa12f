"""Recipes by paper, from `examples/recipes`: what the tests run."""

from __future__ import annotations

import re
import unicodedata
from types import ModuleType

import fkd
from examples.recipes import FILES, RECIPES, Recipe
from fkd._catalogue.docstrings import formula

from .reference import anchors

INTRODUCTION = """\
# Recipes by paper

{count} published methods as terms of an objective. Every program below is a test: it runs as it is
printed, and every parameter of its student gets a gradient. To train it:

    objective = fkd.Objective(terms, student=fkd.trainable(small), teacher=fkd.frozen(large))

with the adapters that it names: `module("project")` is what is given as `project=fkd.trainable(...)`.
Weights are those of the papers, where they are stated. `images`, `input_ids`, `labels` are fields of
your batches; `maps`, `hidden_states`, `logits` what your models return, and any other layer is a
[tap](../guides/selectors.md).

| method | paper | losses |
| --- | --- | --- |
"""


def pages() -> dict[str, str]:
    """The table of all, and a page for each family."""
    made = {f"recipes/{_slug(file)}.md": _page(file) for file in FILES}
    rows = [_row(file, recipe) for file in FILES for recipe in file.RECIPES]
    text = INTRODUCTION.format(count=len(RECIPES)) + "\n".join(sorted(rows, key=str.lower)) + "\n"
    return {"recipes/index.md": text, **made}


def _slug(file: ModuleType) -> str:
    return file.__name__.rsplit(".", 1)[-1].replace("_", "-")


def heading_id(title: str) -> str:
    """The anchor of a heading, as the toc extension of Markdown makes it."""
    ascii_only = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
    plain = re.sub(r"[^\w\s-]", "", ascii_only.lower())
    return re.sub(r"[-\s]+", "-", plain).strip("-")


def _row(file: ModuleType, recipe: Recipe) -> str:
    link = f"{_slug(file)}.md#{heading_id(recipe.title)}"
    return f"| [{recipe.title}]({link}) | {_paper(recipe)} | {_losses(recipe)} |"


def _losses(recipe: Recipe) -> str:
    links = anchors()
    return ", ".join(f"[`{name}`](../{links[name]})" for name in recipe.losses)


def _paper(recipe: Recipe) -> str:
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", recipe.paper)


def _page(file: ModuleType) -> str:
    parts = [f"# Recipes: {(file.__doc__ or '').strip().rstrip('.').lower()}\n"]
    count = len(file.RECIPES)
    titles = ", ".join(recipe.title for recipe in file.RECIPES)
    parts += [
        f"{count} published methods as terms of an objective, each run by a test: {titles}.\n"
    ]
    for recipe in file.RECIPES:
        parts += [f"## {recipe.title}\n", f"{_paper(recipe)}. {recipe.note}\n"]
        parts += [_formulas(recipe), f"```python\n{recipe.source}\n```\n"]
        parts += [f"Losses: {_losses(recipe)}.\n"]
    return "\n".join(parts)


def _formulas(recipe: Recipe) -> str:
    """The equations of its losses, `cross_entropy` apart where there are others."""
    names = [n for n in recipe.losses if n != "cross_entropy"] or recipe.losses
    lines = [line for n in names for line in (*formula(getattr(fkd.losses, n)), "")]
    return "\n".join(["```text", *lines[:-1], "```", ""])
