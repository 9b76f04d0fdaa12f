"""The metrics since the last log point: kept on the device, fetched all at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Fetched(NamedTuple):
    """The metrics of a window on the host.

    Attributes:
      values: by name: of losses and norms the mean over the window's finite steps (nan if
        none was), of everything else the value at its last step.
      finite: for each step whether its update was done.
      culprits: the terms and gradients that were not finite at any step.
    """

    values: dict[str, float]
    finite: list[bool]
    culprits: list[str]


class Window:
    """Metrics of consecutive steps, not looked at yet."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._rows: list[Tensor] = []

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Keep the metrics of a step. The host does not wait for them."""
        self._names = tuple(metrics)
        self._rows.append(torch.stack([v.float() for v in metrics.values()]))

    def __len__(self) -> int:
        return len(self._rows)

    def to_tree(self) -> dict[str, Any]:
        """What a checkpoint keeps: a resumed run logs the same means, and counts the same."""
        return {"names": list(self._names), "rows": list(self._rows)}

    @staticmethod
    def from_tree(tree: Mapping[str, Any], device: torch.device) -> Window:
        """The window that a checkpoint kept."""
        window = Window()
        window._names = tuple(tree["names"])
        window._rows = [row.to(device) for row in tree["rows"]]
        return window

    def fetch(self) -> Fetched:
        """Wait for the steps, and begin a new window."""
        rows = torch.stack(self._rows).tolist()
        columns = dict(zip(self._names, zip(*rows, strict=True), strict=True))
        self._rows = []
        finite = [bool(v) for v in columns.pop("finite")]
        averaged = ("loss/", "grad_norm/", "term_grad_norm/")
        values = {
            name: _mean(column, finite) if name.startswith(averaged) else column[-1]
            for name, column in columns.items()
        }
        if any(finite):  # then nan is what no step has measured: a model that rested, say
            values = {n: v for n, v in values.items() if not math.isnan(v)}
        culprits = [
            name
            for name, column in columns.items()
            if name.startswith(averaged)
            and any(not ok and not math.isfinite(v) for v, ok in zip(column, finite, strict=True))
        ]
        inside = [n for n in culprits if n not in ("loss/total", "grad_norm/total")]
        return Fetched(values, finite, inside or culprits)


def _mean(column: tuple[float, ...], finite: list[bool]) -> float:
    """Over the finite steps; without those of a model's gradient in which it rested."""
    done = [v for v, ok in zip(column, finite, strict=True) if ok]
    counted = [v for v in done if not math.isnan(v)] or done
    return sum(counted) / len(counted) if counted else math.nan
