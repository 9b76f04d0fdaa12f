"""What `fit(prepare=...)` keeps from one step to the next, and how long it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Prepared:
    """How long `prepare` took since the last log point, and for how many tokens."""

    seconds: float = 0.0
    tokens: int = 0

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
