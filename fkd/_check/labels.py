"""Labels that are no class: on a device they end the process, or are an index error of a kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .._base.types import Batch
from .._objective.objective import Objective
from .._objective.terms import Term
from .._refs.paths import name_of
from .._refs.refs import Context, Ref, roots


def labels_out_of_range(objective: Objective, batch: Batch, values: Sequence[Any]) -> Iterator[str]:
    """One message for each `cross_entropy` of fkd with a label that is no class of its logits.

    Only labels that lie in the memory of the host are read: a device would have to be waited for.

    Args:
      objective: what is checked.
      batch: the real one, with its values.
      values: of the program, of which the shapes are read.
    """
    context = Context({"batch": batch})
    for name, term in objective.terms.items():
        if not _is_cross_entropy(term) or len(term.args) != 2:
            continue
        logits = values[objective.program.plan.place[term.args[0]]]
        labels, ignored = (
            read_integers(term.args[1], context),
            term.kwargs.get("ignore_index", -100),
        )
        if labels is None or labels.dtype is torch.bool or not isinstance(ignored, int):
            continue
        counts = labels != ignored
        if term.where is not None:
            mask = read_integers(term.where, context)
            if mask is None or mask.shape != labels.shape:
                continue
            counts = counts & mask.bool()
        classes = int(logits.shape[-1])
        wrong = labels[counts & ((labels < 0) | (labels >= classes))]
        if wrong.numel():
            yield (
                f"term {name!r}: {term.args[1]!r} has the label {int(wrong[0])}; 0 to "
                f"{classes - 1} are expected, since {term.args[0]!r} has {classes} classes, or "
                f"ignore_index={ignored} where none counts."
            )


def _is_cross_entropy(term: Term) -> bool:
    module = str(getattr(term.loss, "__module__", ""))
    return module.startswith("fkd.losses") and name_of(term.loss) == "cross_entropy"


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
