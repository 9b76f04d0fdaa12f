"""Trainable parameters on which the total does not depend (law 7)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from .._errors import listing
from .._mean import Mean, divide
from .._objective.objective import Objective
from .._objective.program import Parts
from .._refs.refs import Ref, roots

SHOWN = 8
"""How many names a message lists as `unused=`."""


def unreached(objective: Objective, parts: Parts, means: Mapping[str, Mean]) -> Iterator[str]:
    """One message for each model with parameters that get no gradient.

    Args:
      objective: what is checked.
      parts: those of the dry run, whose trainable tensors require grad.
      means: of the terms.
    """
    total = torch.stack([divide(*means[name]) for name in objective.weighted]).sum()
    if not total.requires_grad:
        yield "the loss does not depend on any trainable parameter. Is a student among the refs?"
        return
    leaves = [(m, n, p) for m, params in parts.trainable.items() for n, p in params.items()]
    # torch declares tensors, and gives None where there is no path.
    grads: list[Tensor | None] = [
        *torch.autograd.grad(total, [p for *_, p in leaves], allow_unused=True)
    ]
    # A weight that is a ref (a learned uncertainty, say) reaches parameters as well.
    through_weights = {
        name
        for term in objective.terms.values()
        if isinstance(term.weight, Ref)
        for name in (roots(term.weight) or objective.models)
    }
    for model, params in parts.trainable.items():
        lost = [n for (m, n, _), g in zip(leaves, grads, strict=True) if m == model and g is None]
        if lost and model not in through_weights:
            yield _message(model, lost, list(params))


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
