"""The catalogue of losses, `fkd/losses/README.md`, made from their docstrings.

python -m tests.catalogue            write the page
python -m tests.catalogue --check    fail if the page is out of date
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fkd.adapters
import fkd.losses
import fkd.losses.head
from fkd._catalogue.data import ADAPTERS, COSTS, NO_FORMULA
from fkd._catalogue.docstrings import formula, public, reference, sections, summary, takes
from fkd._catalogue.entries import families, title_of

PAGE = Path(__file__).parent.parent / "fkd" / "losses" / "README.md"
HEADS = "fkd.losses.head"
INTRODUCTION = """\
# The losses

<!-- Made by `python -m tests.catalogue` from the docstrings; edit those. -->

Every loss is a pure function of tensors: `loss(student_x, teacher_x, *, knobs, where=None)`. It
returns one value per position, unreduced; a term of an objective takes the mean over the positions
that count. p is the teacher's distribution, q the student's, T a temperature, s and t the features
of student and teacher, n(x) = x / |x|. Half precision is computed in float32, inside
`torch.autocast` as well, and float32 beside float64 in float64. All compile with `fullgraph=True`
and work under `torch.func`, in reverse and in forward mode.

A feature map is `[batch, channels, *space]` in every loss of feature maps: any axes of space, and
a list of maps is a list of terms. Their `where` is `[batch]`, one True or False for every sample,
or `[batch, *space]`, one for every place; a padded map has the value of the map without its
padding (where cells are pooled, `hcl` and `cat_kd`, the cells' means are over their places that
count). All other losses have the features or classes last: `call(torch.movedim, map, 1, -1)`.

Time and memory are linear in the size of the inputs where the cost says nothing.
"""


def paper(value: Any) -> str:
    """The references, on one line, with links to arXiv."""
    return _links(reference(value))


def _links(text: str) -> str:
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def _code(lines: list[str]) -> str:
    """Lines of code in one cell of a table."""
    return "<br>".join(f"`{' '.join(line.split())}`".replace("|", "\\|") for line in lines)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _loss_row(name: str, fn: Any) -> str:
    tensors, knobs = takes(fn)
    taken = _code([part for part in (tensors, knobs) if part])
    pairs = ", ".join(f"[{a}](#adapters)" for a in ADAPTERS.get(name, ()))
    extra = "<br>".join(part for part in (COSTS.get(name, ""), pairs) if part)
    return _row(f"**{name}**", summary(fn), _code(formula(fn)), taken, extra, paper(fn))


def _families() -> Iterator[str]:
    """A table for every folder of losses; its docstring is the title."""
    functions = {n: v for n, v in public(fkd.losses).items() if inspect.isfunction(v)}
    for room in families():
        inside = [n for n, v in functions.items() if v.__module__.startswith(f"{room.__name__}.")]
        if not inside:
            continue
        yield f"## {title_of(room)}\n"
        yield _row("name", "what it is", "formula", "takes", "cost, adapter", "paper")
        yield _row(*["---"] * 6)
        yield from (_loss_row(name, functions[name]) for name in inside)
        yield ""


def _records() -> Iterator[str]:
    yield "## States and records\n"
    for name, value in public(fkd.losses).items():
        if inspect.isclass(value):
            fields = ", ".join(inspect.signature(value).parameters)
            yield f"- **{name}** (`{fields}`): {summary(value)}"
    yield ""


def _heads() -> Iterator[str]:
    yield "## Language-model heads: `fkd.losses.head`\n"
    yield (
        "The same divergences from hidden states and output matrices: the logits are never\n"
        "stored. `head_divergence(...)` computes any sum of them.\n"
    )
    for name, value in public(fkd.losses.head).items():
        yield f"- **{name}**: {summary(value)}"
    yield ""


def _adapters() -> Iterator[str]:
    yield "## Adapters\n"
    yield "Learnable modules of `fkd.adapters`, given to an objective by name.\n"
    yield _row("name", "what it is", "formula", "made with", "input and output", "paper")
    yield _row(*["---"] * 6)
    for name, value in public(fkd.adapters).items():
        made, knobs = takes(value.__init__)
        arguments = [part for part in (made.removeprefix("self").strip(", "), knobs) if part]
        shape = " ".join(sections(value).get("Shape", "").split()).replace("|", "\\|")
        cells = (summary(value), _code(formula(value)), _code(arguments), shape, paper(value))
        yield _row(f"**{name}**", *cells)
    yield ""


def _recipes() -> Iterator[str]:
    yield "## Recipes\n"
    yield (
        "Published methods as terms of an objective, each tested, are in `examples/recipes/`, and\n"
        "pages of the documentation.\n"
    )


def page() -> str:
    """The whole page."""
    parts = (_families(), _records(), _heads(), _adapters(), _recipes())
    return INTRODUCTION + "\n" + "\n".join(line for part in parts for line in part)


def faults() -> list[str]:
    """What is missing in the docstrings."""
    found: list[str] = []
    for module in (fkd.losses, fkd.adapters):
        for name, value in public(module).items():
            headings = sections(value)
            needed = [] if name in NO_FORMULA or name.startswith("head_") else ["Reference"]
            needed += ["Example"] if name not in NO_FORMULA or inspect.isfunction(value) else []
            found += [f"{name}: no {h} section" for h in needed if h not in headings]
            if name not in NO_FORMULA and not formula(value):
                found.append(f"{name}: no formula (an indented block after the summary)")
    return found


def main(arguments: list[str]) -> int:
    """Write the page, or compare it."""
    if "--check" in arguments:
        return int(not PAGE.exists() or PAGE.read_text() != page())
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
