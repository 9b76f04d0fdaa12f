"""Labels and masks of a causal language model that are not shifted: with such labels it would learn
to copy its input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .._base.types import Batch
from .._objective.apply import predicts_the_next_token
from .._objective.objective import Objective
from .._objective.terms import Term
from .._refs.derived import Call
from .._refs.paths import name_of
from .._refs.refs import Context, Ref, node, output_path, roots, walk


def unshifted_labels(objective: Objective, batch: Batch) -> Iterator[str]:
    """One message for each loss of fkd that compares a causal model's output at a position with
    the token at that position, which is an input, instead of the next one.

    Args:
      objective: what is checked.
      batch: the real one, with its values.
    """
    read = _causal_inputs(objective, batch)
    if read is None:
        return
    inputs, causal = read
    for name, loss, args, options in _losses(objective):
        reads = {root for ref in args for root in roots(ref) or ()}
        if options.get("shift") or not reads & causal:
            continue
        for ref in args:
            if _are(ref, inputs, batch):
                yield (
                    f"term {name!r}: {ref!r} are the tokens of input_ids themselves, and "
                    f"{', '.join(sorted(reads & causal))} predicts the next one at each position: "
                    f"{name_of(loss)} would train it to copy its input. Shift the labels: "
                    f"fkd.call(fkd.loops.next_tokens, {ref!r}), or shift=True for a head."
                )


def unshifted_masks(objective: Objective, batch: Batch) -> Iterator[str]:
    """One message for each term over a causal model's predictions whose mask has the positions of
    the labels themselves, instead of the positions that predict them.

    Args:
      objective: what is checked.
      batch: the real one, with its values.
    """
    read = _causal_inputs(objective, batch)
    if read is None:
        return
    inputs, causal = read
    for name, term in objective.terms.items():
        models = sorted({m for ref in term.refs for m in _predicts(ref, term)} & causal)
        if term.where is None or term.kwargs.get("shift") or not models:
            continue
        mask = _of_batch(term.where, batch)
        if mask is None or mask.shape != inputs.shape:
            continue
        for ref in walk(term.where):
            labels = _of_batch(ref, batch)
            if labels is None or not _are_unshifted(labels, inputs):
                continue
            if torch.equal(mask.bool(), labels >= 0):
                predict = "predicts" if len(models) == 1 else "predict"
                yield (
                    f"term {name!r}: where={term.where!r} are the positions of the labels "
                    f"themselves, and {', '.join(models)} {predict} the next token at each "
                    "position: the mask is one position off. Shift the labels: "
                    f"where=fkd.call(fkd.loops.next_tokens, {ref!r}) != -100."
                )
                break


def _causal_inputs(objective: Objective, batch: Batch) -> tuple[Tensor, set[str]] | None:
    """The tokens of a batch and the models that predict the next one at each position, if any."""
    inputs = batch.get("input_ids") if isinstance(batch, Mapping) else None
    if not isinstance(inputs, Tensor):
        return None
    modules = {name: objective.program.model(name).module for name in objective.models}
    causal = {n for n, m in modules.items() if m is not None and predicts_the_next_token(m)}
    return (inputs, causal) if causal else None


def _are_unshifted(labels: Tensor, inputs: Tensor) -> bool:
    """Whether a field has labels, some of which do not count, and not those of the next token."""
    if labels.shape != inputs.shape or labels.is_floating_point() or labels.dtype is torch.bool:
        return False
    counts = (labels >= 0)[:, :-1]
    if not (labels < 0).any() or not counts.any():
        return False
    of_next = (labels[:, :-1] == inputs[:, 1:].to(labels))[counts]
    return float(of_next.float().mean()) < 0.5  # the last one may be an end that is no input


def _predicts(ref: Ref, term: Term) -> Iterator[str]:
    """The models whose predictions a ref gives: their logits, or what a head makes of states."""
    if name_of(term.loss).startswith("head_"):
        yield from roots(ref) or ()
        return
    for part in walk(ref):
        path = output_path(part)
        if path is not None and path[1][-1:] == ("logits",):
            yield path[0]


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
    labels = _of_batch(ref, batch)
    if labels is None or labels.shape != inputs.shape:
        return False
    if labels.is_floating_point() or labels.dtype is torch.bool:
        return False
    counts = labels >= 0
    # One token may stand twice in a row; a whole batch of them does not.
    return int(counts.sum()) > 1 and bool((labels == inputs.to(labels))[counts].all())


def _of_batch(ref: Ref, batch: Batch) -> Tensor | None:
    """The tensor that a ref to the batch gives."""
    if roots(ref) != frozenset(["batch"]):
        return None
    try:
        value: Any = ref(Context({"batch": batch}))
    except Exception:  # said by the dry run
        return None
    return value if isinstance(value, Tensor) else None
