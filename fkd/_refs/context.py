"""What the terms of one step are computed from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Context:
    """What the terms of one step are computed from. Filled once, never changed.

    `ctx["student"]` is what the student returned and `ctx["batch"]` is the batch.

    Attributes:
      values: outputs by model name, and the batch under `"batch"`.
      taps: by model name, what its taps and attention captures saw.
      params: by model name, its parameters (trainable and frozen ones).
      modules: by model name, the module as a function of values.
    """

    values: Mapping[str, Any]
    taps: Mapping[str, Mapping[Any, Any]] = field(default_factory=dict)
    params: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    modules: Mapping[str, Callable[..., Any]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.values[name]
