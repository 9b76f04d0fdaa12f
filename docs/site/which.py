"""The page "Which loss?", from `fkd._catalogue.uses`."""

from __future__ import annotations

from itertools import groupby

from fkd._catalogue.entries import entries
from fkd._catalogue.uses import USES, Use

from .reference import anchors

HEAD = """\
# Which loss?

What do you have, and what do you want? Begin with the first loss of a row; it is the one with the
best ratio of effect to effort. `python -m fkd losses WORD` searches the same table.

The recipe matters more than the loss: in every comparison of many methods under one recipe, plain
`kl` with a good learning rate, enough epochs and matching augmentation is hard to beat. Start with
`kl` on logits, look at the [report card](guides/report-card.md), and add one term at a time.

"""


def page() -> str:
    """The page."""
    parts = [HEAD]
    for task, uses in groupby(USES, key=lambda use: use.task):
        rows = [_row(use) for use in uses]
        head = "| you have | you want | begin with | cost | why, and what to watch |"
        parts += [f"## {task}\n", head, "| --- | --- | --- | --- | --- |", *rows, ""]
    return "\n".join(parts)


def _row(use: Use) -> str:
    links = anchors()
    names = ", ".join(f"[`{n}`]({links[n]})" for n in (*use.losses, *use.adapters))
    costs = {entry.name: entry.cost for entry in entries()}
    cost = costs[use.losses[0]] or "linear"
    return f"| {use.has} | {use.wants} | {names} | {cost} | {use.why} |"
