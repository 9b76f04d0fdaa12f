"""What `fit(prepare=...)` keeps from one step to the next, and how long it takes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fkd._base.errors import listing
from fkd._base.types import Batch
from fkd._objective.apply import call_arguments
from fkd._objective.objective import Objective
from fkd._refs.attached import Attached
from fkd._refs.sourced import FIELD

from .._data.fields import Field, as_batch, as_fields


@dataclass
class Prepared:
    """How long `prepare` took since the last log point, and for how many tokens."""

    seconds: float = 0.0
    tokens: int = 0
    told: bool = False

    def tell(self, objective: Objective, drawn: Mapping[Field, Any], batch: Batch) -> None:
        """Warn once where `prepare` changes what models read beside the answers of a source, which
        are to the batch as it was drawn."""
        sources = [str(n).removeprefix(FIELD) for n in drawn if str(n).startswith(FIELD)]
        if self.told or not sources:
            return
        changed = _changed(drawn, drawn_fields(batch))
        before = as_batch(drawn, batch)
        read = [n for n in changed if _is_read(objective, before, drawn[n])] if changed else []
        if read:
            self.told = True
            warnings.warn(
                f"fit: prepare changes {listing(map(repr, read))}, which a model reads, and the "
                f"values of the source {sources[0]!r} are of the batch before. If the teacher is "
                "to see what the student sees, prepare the samples before the source is attached: "
                "source.attach(loader); if only the student is, this is as it should be.",
                stacklevel=2,
            )

    def rates(self, *, seconds: float, steps: int) -> dict[str, float]:
        """Both halves of a step: what is prepared, and what is left for the update.

        Args:
          seconds: of both.
          steps: in this time.
        """
        if not self.seconds or not steps:
            return {}
        rest = max(seconds - self.seconds, 1e-9)
        values = {"prepare_s": self.seconds / steps, "update_s": rest / steps}
        if self.tokens:
            values["prepare_tokens_per_s"] = self.tokens / self.seconds
            values["update_tokens_per_s"] = self.tokens / rest
        return values


def prepared(prepare: Callable[..., Batch], state: object, batch: Batch) -> Batch:
    """The batch as the user prepares it; what sources gave beside it stays."""
    if isinstance(batch, Attached):
        return batch._replace(batch=prepare(state, batch.batch))
    return prepare(state, batch)


def drawn_fields(batch: Batch) -> dict[Field, Any]:
    """The parts of a batch that may have the values of a source among them; none of any other."""
    return as_fields(batch) if isinstance(batch, Mapping | Attached) else {}


def state_of(prepare: object) -> dict[str, Any] | None:
    """What `prepare` keeps from one step to the next, if it has a `state_dict`."""
    keeps: Any = getattr(prepare, "state_dict", None)
    return None if keeps is None else keeps()


def restore(prepare: object, state: dict[str, Any] | None) -> None:
    """Give it back after a checkpoint, to one that can take it."""
    takes: Any = getattr(prepare, "load_state_dict", None)
    if takes is not None and state is not None:
        takes(state)


def _changed(before: Mapping[Field, Any], after: Mapping[Field, Any]) -> list[Field]:
    """The fields with other numbers than before."""
    pairs = {name: (x, after.get(name)) for name, x in before.items() if isinstance(x, Tensor)}
    other = {n: (x, y) for n, (x, y) in pairs.items() if x is not y and isinstance(y, Tensor)}
    return [n for n, (x, y) in other.items() if x.shape != y.shape or not torch.equal(x, y.to(x))]


def _is_read(objective: Objective, batch: Batch, part: object) -> bool:
    """Whether a model is called with a part of a batch."""
    for model in objective.models.values():
        if model.module is None:
            continue
        try:
            args, kwargs = call_arguments(model, batch)
        except Exception:  # said by the dry run
            continue
        if any(x is part for x in (*args, *kwargs.values())):
            return True
    return False
