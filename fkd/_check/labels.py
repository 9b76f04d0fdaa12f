"""Labels that are no class: on a device they end the process, or are an index error of a kernel."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .._base.types import Batch
from .._objective.objective import Objective
from .._objective.terms import Term
from .._refs.refs import Context, Ref, roots


def labels_out_of_range(objective: Objective, batch: Batch, values: Sequence[Any]) -> Iterator[str]:
    """One message for each loss or metric of fkd with a label that is no class of its logits.

    Only labels that lie in the memory of the host are read: a device would have to be waited for.

    Args:
      objective: what is checked.
      batch: the real one, with its values.
      values: of the program, of which the shapes are read.
    """
    context = Context({"batch": batch})
    for name, term in objective.terms.items():
        options = _options(term)
        logits_ref, labels_ref = (options.get(n) for n in (_logits(options), "labels"))
        if not isinstance(logits_ref, Ref) or not isinstance(labels_ref, Ref):
            continue
        logits = values[objective.program.plan.place[logits_ref]]
        labels, ignored = read_integers(labels_ref, context), options.get("ignore_index")
        if labels is None or labels.dtype is torch.bool or labels.shape != logits.shape[:-1]:
            continue
        counts = _counts(term, labels, ignored)
        if term.where is not None:
            mask = read_integers(term.where, context)
            if mask is None or mask.shape != labels.shape:
                continue
            counts = counts & mask.bool()
        classes = int(logits.shape[-1])
        wrong = labels[counts & ((labels < 0) | (labels >= classes))]
        if wrong.numel():
            none = f"ignore_index={ignored}" if isinstance(ignored, int) else "a mask where=..."
            yield (
                f"term {name!r}: {labels_ref!r} has the label {int(wrong[0])}; 0 to "
                f"{classes - 1} are expected, since {logits_ref!r} has {classes} classes, or "
                f"{none} where none counts."
            )


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


def _logits(options: Mapping[str, Any]) -> str:
    return "logits" if "logits" in options else "student_logits"


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
