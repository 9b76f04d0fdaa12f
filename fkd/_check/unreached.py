"""Trainable parameters on which the total does not depend (law 7)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from .._base.errors import listing
from .._base.mean import Mean, divide
from .._objective.apply import layer_drop
from .._objective.objective import Objective
from .._objective.program import Parts
from .._objective.reach import backward_passes
from .._refs.refs import Ref, roots

TRIES = 20
"""Runs of a model that leaves out layers, after which one that never ran counts as unreached."""

SHOWN = 8
"""How many names a message lists as `unused=`."""


def unreached(
    objective: Objective, parts: Parts, runs: Iterator[Mapping[str, Mean]]
) -> Iterator[str]:
    """One message for each model with parameters that get no gradient.

    A model that leaves out whole layers at random runs until every layer was in, or `TRIES` times.

    Args:
      objective: what is checked.
      parts: those of the dry run, whose trainable tensors require grad.
      runs: the means of the terms, of one run after the other.
    """
    dropping = [name for name in parts.trainable if layer_drop(objective.models[name])]
    reached: set[tuple[str, str]] = set()
    for means in itertools.islice(runs, TRIES if dropping else 1):
        parts_of_total = {name: divide(*means[name]) for name in objective.weighted}
        if not any(x.requires_grad for x in parts_of_total.values()):
            yield (
                "the loss does not depend on any trainable parameter. Is a student among the refs?"
            )
            return
        reached |= _reached(objective, parts, parts_of_total)
        if all((model, n) in reached for model in dropping for n in parts.trainable[model]):
            break
    # A weight that is a ref (a learned uncertainty, say) reaches parameters as well.
    through_weights = {
        name
        for term in objective.terms.values()
        if isinstance(term.weight, Ref)
        for name in (roots(term.weight) or objective.models)
    }
    for model, params in parts.trainable.items():
        lost = [n for n in params if (model, n) not in reached]
        if lost and model not in through_weights:
            yield _message(model, lost, list(params))


def _reached(
    objective: Objective, parts: Parts, parts_of_total: Mapping[str, Tensor]
) -> set[tuple[str, str]]:
    """The parameters on which a term depends that trains their model."""
    reached: set[tuple[str, str]] = set()
    for terms, models in backward_passes(objective.terms, parts.trainable):
        ends = [parts_of_total[n] for n in terms if parts_of_total[n].requires_grad]
        leaves = [(m, n) for m in models for n in parts.trainable[m]]
        if not ends or not leaves:
            continue
        inputs = [parts.trainable[m][n] for m, n in leaves]
        total = torch.stack(ends).sum()
        # torch declares tensors, and gives None where there is no path.
        grads: list[Tensor | None] = [
            *torch.autograd.grad(total, inputs, allow_unused=True, retain_graph=True)
        ]
        reached |= {leaf for leaf, grad in zip(leaves, grads, strict=True) if grad is not None}
    return reached


def _message(model: str, lost: Sequence[str], names: Sequence[str]) -> str:
    if len(lost) == len(names):
        return (
            f"model {model!r} is trainable, and no term reaches it: nothing that it computes is "
            f"read by a term with a weight. Use it in a term, or leave it out."
        )
    prefixes = largest_prefixes(lost, names)
    more = " + [...]" if len(prefixes) > SHOWN else ""
    return (
        f"model {model!r}: no term reaches {len(lost)} of its {len(names)} trainable parameters, "
        f"since nothing that they compute is read: {listing(lost, limit=4)}. If that is meant, say "
        f"so: fkd.trainable(module, unused={prefixes[:SHOWN]}{more}). They then stay as they are."
    )


def largest_prefixes(lost: Sequence[str], names: Sequence[str]) -> list[str]:
    """The fewest dotted prefixes that cover the lost names and no other one.

    Example:
      >>> largest_prefixes(["a.x", "a.y", "b.x"], ["a.x", "a.y", "b.x", "b.y"])
      ['a', 'b.x']
    """
    reached = {prefix for name in names if name not in set(lost) for prefix in _prefixes(name)}
    chosen = (next(p for p in _prefixes(name) if p not in reached) for name in lost)
    return list(dict.fromkeys(chosen))


def _prefixes(name: str) -> list[str]:
    """The prefixes of a dotted name, shortest first, itself included."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
