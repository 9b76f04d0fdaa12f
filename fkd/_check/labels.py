"""Labels that are no class: on a device they end the process, or are an index error of a kernel."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .._base.types import Batch
from .._objective.terms import Term
from .._refs.refs import Context, Ref, roots


def labels_out_of_range(
    terms: Mapping[str, Term], batch: Batch, value_of: Callable[[Ref], Any], *, kind: str = "term"
) -> Iterator[str]:
    """One message for each loss or metric of fkd with a label that is no class of its logits, or
    of the head that would give them.

    Only labels that lie in the memory of the host are read: a device would have to be waited for.

    Args:
      terms: what is checked, by name.
      batch: the real one, with its values.
      value_of: what a ref gives, of which the shape is read.
      kind: what a message calls them.
    """
    context = Context({"batch": batch})
    for name, term in terms.items():
        options = _options(term)
        classes, labels_ref = _classes(options, value_of), options.get("labels")
        if classes is None or not isinstance(labels_ref, Ref):
            continue
        labels, ignored = read_integers(labels_ref, context), options.get("ignore_index")
        if labels is None or labels.dtype is torch.bool or labels.shape != classes.positions:
            continue
        counts = _counts(term, labels, ignored)
        if options.get("shift") is True:  # position t predicts the label of t + 1
            labels, counts = labels[..., 1:], counts[..., 1:]
        if term.where is not None:
            mask = read_integers(term.where, context)
            if mask is None or mask.shape != classes.positions:
                continue
            mask = mask[..., :-1] if options.get("shift") is True else mask
            counts = counts & mask.bool()
        wrong = labels[counts & ((labels < 0) | (labels >= classes.number))]
        if wrong.numel():
            none = f"ignore_index={ignored}" if isinstance(ignored, int) else "a mask where=..."
            yield (
                f"{kind} {name!r}: {labels_ref!r} has the label {int(wrong[0])}; 0 to "
                f"{classes.number - 1} are expected, since {classes.of!r} has {classes.number} "
                f"classes, or {none} where none counts."
            )


def with_labels(terms: Mapping[str, Term]) -> dict[str, Term]:
    """Those whose loss or metric is of fkd and is given labels."""
    return {n: t for n, t in terms.items() if isinstance(_options(t).get("labels"), Ref)}


class _Classes(NamedTuple):
    """How many classes there are, by what, and at which positions."""

    number: int
    of: Ref
    positions: torch.Size


def _classes(options: Mapping[str, Any], value_of: Callable[[Ref], Any]) -> _Classes | None:
    """Of logits, `[*positions, classes]`; or of a head, whose weight is `[classes, features]`."""
    logits_ref = options.get("logits" if "logits" in options else "student_logits")
    if isinstance(logits_ref, Ref):
        logits = value_of(logits_ref)
        if isinstance(logits, Tensor) and logits.ndim:
            return _Classes(int(logits.shape[-1]), logits_ref, logits.shape[:-1])
    if not getattr(options.get("divergence"), "needs_labels", False):
        return None
    hidden_ref, weight_ref = options.get("student_hidden"), options.get("student_weight")
    if isinstance(hidden_ref, Ref) and isinstance(weight_ref, Ref):
        hidden, weight = value_of(hidden_ref), value_of(weight_ref)
        if isinstance(hidden, Tensor) and isinstance(weight, Tensor) and hidden.ndim:
            return _Classes(int(weight.shape[0]), weight_ref, hidden.shape[:-1])
    return None


def _options(term: Term) -> Mapping[str, Any]:
    """What a loss or a metric of fkd is given, by the names of its parameters; else nothing."""
    inner = getattr(term.loss, "func", term.loss)
    if not str(getattr(inner, "__module__", "")).startswith(("fkd.losses", "fkd.metrics")):
        return {}
    try:
        bound = inspect.signature(term.loss).bind_partial(*term.args, **term.kwargs)
    except (TypeError, ValueError):  # said elsewhere; or a builtin
        return {}
    bound.apply_defaults()
    return bound.arguments


def _counts(term: Term, labels: Tensor, ignored: object) -> Tensor:
    """Where a label is to be a class, by the loss: not where it is `ignore_index`, or below 0 for
    a metric."""
    if isinstance(ignored, int):
        return labels != ignored
    inner = getattr(term.loss, "func", term.loss)
    of_metric = str(getattr(inner, "__module__", "")).startswith("fkd.metrics")
    return labels >= 0 if of_metric else torch.ones_like(labels, dtype=torch.bool)


def read_integers(ref: Ref, context: Context) -> Tensor | None:
    """Integers that a ref to the batch gives, where they can be read at once."""
    if roots(ref) != frozenset(["batch"]):
        return None
    try:
        value: Any = ref(context)
    except Exception:  # said by the dry run
        return None
    if not isinstance(value, Tensor) or isinstance(value, FakeTensor):
        return None
    plain = value.device.type == "cpu" and value.layout is torch.strided
    return value if plain and not value.is_floating_point() else None
