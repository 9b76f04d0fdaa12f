"""Labels that metrics read alone, which no term of the objective has."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from .._base.trees import map_tensors
from .._base.types import Batch
from .._objective.models import stand_ins
from .._objective.objective import Objective
from .._objective.terms import Term
from .labels import labels_out_of_range, with_labels


def wrong_labels_of_metrics(
    objective: Objective,
    metrics: Mapping[str, Term],
    batch: Batch,
    *,
    autocast: torch.dtype | None = None,
) -> list[str]:
    """One message for each metric with a label that is no class of its logits.

    Nothing is computed: shapes are those of fake tensors, which go through the models if a metric
    has labels. Where models do not run on these, or a metric is wrong in another way, nothing is
    said here.

    Args:
      objective: whose models the metrics read.
      metrics: by name.
      batch: the real one, with its values.
      autocast: dtype in which models run their matrix products.
    """
    metrics = with_labels(metrics)
    if not metrics:
        return []
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        program = objective.reading(metrics)
        parts = program.parts(
            copied=lambda x: mode.from_tensor(x.detach()),
            shared=lambda x: mode.from_tensor(x.detach()),
            absent=stand_ins(objective.models),
        )
        fake = map_tensors(mode.from_tensor, batch)
        with mode, torch.no_grad():
            values = program.values(program.context(parts, fake, autocast=autocast).context)
    except Exception:  # said where the metric is evaluated
        return []
    place = program.plan.place
    return list(labels_out_of_range(metrics, batch, lambda ref: values[place[ref]], kind="metric"))
