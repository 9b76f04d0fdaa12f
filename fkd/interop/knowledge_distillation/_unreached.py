"""Parameters on which a loss does not depend."""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from fkd._objective import Objective
from fkd._trees import map_tensors
from fkd._types import Batch


def unreached(objective: Objective, batch: Batch) -> dict[str, list[str]]:
    """The trainable parameters that no loss reaches, by model: a plain loop gives them no
    gradient, and an optimizer leaves them as they are (with no weight decay either).

    Runs on fake tensors, so that nothing is computed; on real ones where a loss looks at values.
    """
    try:
        return _unreached(objective, batch, FakeTensorMode(allow_non_fake_inputs=True))
    except (DataDependentOutputException, DynamicOutputShapeException):
        with torch.random.fork_rng():
            return _unreached(objective, batch, None)


def _unreached(
    objective: Objective, batch: Batch, mode: FakeTensorMode | None
) -> dict[str, list[str]]:
    fake = mode.from_tensor if mode else (lambda x: x)

    def own(x: Any) -> Any:
        return fake(x.detach()).detach()

    parts = objective.parts(own=own, shared=lambda x: fake(x.detach()))
    leaves = [(m, n, p) for m, held in parts.trainable.items() for n, p in held.items()]
    for *_, p in leaves:
        p.requires_grad_(p.is_floating_point())
    with mode if mode else torch.enable_grad(), torch.enable_grad():
        loss, _ = objective(*parts[:3], map_tensors(fake, batch))
        if not loss.requires_grad:
            return {}  # the check says what is wrong
        grads: Any = torch.autograd.grad(loss, [p for *_, p in leaves], allow_unused=True)
    found: dict[str, list[str]] = {}
    for (model, name, _), grad in zip(leaves, grads, strict=True):
        if grad is None:
            found.setdefault(model, []).append(name)
    return found
