"""Labels of a causal language model that are not shifted: it would learn to copy its input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .._base.types import Batch
from .._objective.apply import predicts_the_next_token
from .._objective.objective import Objective
from .._refs.derived import Call
from .._refs.paths import name_of
from .._refs.refs import Context, Ref, node, roots


def unshifted_labels(objective: Objective, batch: Batch) -> Iterator[str]:
    """One message for each loss of fkd that compares a causal model's output at a position with
    the token at that position, which is an input, instead of the next one.

    Args:
      objective: what is checked.
      batch: the real one, with its values.
    """
    inputs = batch.get("input_ids") if isinstance(batch, Mapping) else None
    causal = {
        name
        for name in objective.models
        if (module := objective.program.model(name).module) is not None
        and predicts_the_next_token(module)
    }
    if not isinstance(inputs, Tensor) or not causal:
        return
    for name, loss, args, options in _losses(objective):
        reads = {root for ref in args for root in roots(ref) or ()}
        if options.get("shift") or not reads & causal:
            continue
        for ref in args:
            if roots(ref) == frozenset(["batch"]) and _are(ref, inputs, batch):
                yield (
                    f"term {name!r}: {ref!r} are the tokens of input_ids themselves, and "
                    f"{', '.join(sorted(reads & causal))} predicts the next one at each position: "
                    f"{name_of(loss)} would train it to copy its input. Shift the labels: "
                    f"fkd.call(fkd.loops.next_tokens, {ref!r}), or shift=True for a head."
                )


def _losses(
    objective: Objective,
) -> Iterator[tuple[str, Callable[..., Any], list[Ref], Mapping[str, Any]]]:
    """Each loss of fkd with its refs and options, in terms and in calls inside of terms."""
    for name, term in objective.terms.items():
        if not _is_of_fkd(term.loss):
            continue
        options = [v for v in term.kwargs.values() if isinstance(v, Ref)]
        yield name, term.loss, [*term.args, *options], term.kwargs
    for ref in objective.program.plan.refs:
        part = node(ref)
        if isinstance(part, Call) and part.fn is not None and _is_of_fkd(part.fn):
            yield repr(ref), part.fn, list(part.children), dict(part.kwargs)


def _is_of_fkd(fn: Callable[..., Any]) -> bool:
    inner = getattr(fn, "func", fn)
    return str(getattr(inner, "__module__", "")).startswith("fkd.losses")


def _are(ref: Ref, inputs: Tensor, batch: Batch) -> bool:
    """Whether a ref to the batch gives the input tokens, at every position that counts."""
    try:
        labels: Any = ref(Context({"batch": batch}))
    except Exception:  # said by the dry run
        return False
    if not isinstance(labels, Tensor) or labels.shape != inputs.shape:
        return False
    if labels.is_floating_point() or labels.dtype is torch.bool:
        return False
    counts = labels >= 0
    # One token may stand twice in a row; a whole batch of them does not.
    return int(counts.sum()) > 1 and bool((labels == inputs.to(labels))[counts].all())
