"""What `fit(prepare=...)` keeps from one step to the next, and how long it takes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fkd._base.errors import listing
from fkd._base.types import Batch
from fkd._objective.apply import call_arguments
from fkd._objective.objective import Objective
from fkd._refs.sourced import FIELD


@dataclass
class Prepared:
    """How long `prepare` took since the last log point, and for how many tokens."""

    seconds: float = 0.0
    tokens: int = 0
    told: bool = False

    def tell(self, objective: Objective, drawn: Mapping[str, Any], batch: Batch) -> None:
        """Warn once where `prepare` changes what models read beside the answers of a source, which
        are to the batch as it was drawn."""
        sources = [name.removeprefix(FIELD) for name in drawn if str(name).startswith(FIELD)]
        if self.told or not sources or not isinstance(batch, Mapping):
            return
        changed = _changed(drawn, batch)
        read = [name for name in changed if _is_read(objective, drawn, name)] if changed else []
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


def state_of(prepare: object) -> dict[str, Any] | None:
    """What `prepare` keeps from one step to the next, if it has a `state_dict`."""
    keeps: Any = getattr(prepare, "state_dict", None)
    return None if keeps is None else keeps()


def restore(prepare: object, state: dict[str, Any] | None) -> None:
    """Give it back after a checkpoint, to one that can take it."""
    takes: Any = getattr(prepare, "load_state_dict", None)
    if takes is not None and state is not None:
        takes(state)


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The fields with other numbers than before."""
    pairs = {name: (x, after.get(name)) for name, x in before.items() if isinstance(x, Tensor)}
    other = {n: (x, y) for n, (x, y) in pairs.items() if x is not y and isinstance(y, Tensor)}
    return [n for n, (x, y) in other.items() if x.shape != y.shape or not torch.equal(x, y.to(x))]


def _is_read(objective: Objective, batch: Mapping[str, Any], name: str) -> bool:
    """Whether a model is called with a field of a batch."""
    for model in objective.models.values():
        if model.module is None:
            continue
        try:
            args, kwargs = call_arguments(model, batch)
        except Exception:  # said by the dry run
            continue
        if any(x is batch[name] for x in (*args, *kwargs.values())):
            return True
    return False
