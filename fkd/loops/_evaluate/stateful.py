"""Metrics that hold a state, such as those of torchmetrics, as functions of all batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch


@runtime_checkable
class StatefulMetric(Protocol):
    """What every metric of torchmetrics can do."""

    def reset(self) -> Any:
        """Forget everything."""
        ...

    def update(self, *values: Any) -> Any:
        """One more batch."""
        ...

    def compute(self) -> Any:
        """The value of all batches since the last reset."""
        ...


def over_batches(metric: StatefulMetric) -> Callable[..., float | Mapping[str, float]]:
    """The metric as a function of lists of values, one for each batch.

    A value with several elements, such as one for each class, is given by their numbers.
    """

    def whole(*columns: list[Any]) -> float | Mapping[str, float]:
        metric.reset()
        for values in zip(*columns, strict=True):
            metric.update(*values)
        return _numbers(metric.compute())

    return whole


def _numbers(value: Any) -> float | dict[str, float]:
    if isinstance(value, Mapping):
        parts = {str(name): _numbers(part) for name, part in value.items()}
        return {
            f"{name}/{inner}" if inner else name: number
            for name, part in parts.items()
            for inner, number in (part.items() if isinstance(part, dict) else [("", part)])
        }
    numbers = torch.as_tensor(value).double()
    if numbers.ndim == 0:
        return float(numbers)
    return {str(i): float(x) for i, x in enumerate(numbers.flatten())}
