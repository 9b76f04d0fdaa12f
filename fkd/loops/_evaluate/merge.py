"""What several processes have measured, each on some batches of one data set, as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fkd._base.mean import Mean
from fkd.parallel._world import World

from .._checkpoint.told import packed, unpacked


class Measured(NamedTuple):
    """What was measured on some batches.

    Attributes:
      losses, metrics: means that are not divided yet.
      weights: of the losses, at the last batch.
      collected: the values of each collected metric, with the numbers of their batches.
      last: the number of the last batch; -1 if there was none.
    """

    losses: dict[str, Mean]
    metrics: dict[str, Mean]
    weights: dict[str, Tensor]
    collected: dict[str, list[tuple[int, Any]]]
    last: int


Summary = Callable[[Measured], dict[str, float]]
"""The numbers of what was measured."""


def merged_over(world: World, measured: Measured, summary: Summary) -> dict[str, float]:
    """The summary of what all processes have measured, which the first one makes.

    Totals and counts are added in the order of the ranks: all get the same bits.
    """
    if world.size == 1:
        return summary(measured)
    every = [
        _from_tree(unpacked(content)) for content in world.gathered(packed(_to_tree(measured)))
    ]
    whole = world.shared(lambda: list(summary(_merged(every)).items()))
    return {name: _number(value) for name, value in whole}


def _merged(every: list[Measured]) -> Measured:
    latest = max(every, key=lambda one: one.last)
    whole = Measured({}, {}, latest.weights, {}, latest.last)
    for one in every:
        for sums, means in ((whole.losses, one.losses), (whole.metrics, one.metrics)):
            for name, mean in means.items():
                sums[name] = sums[name].merge(mean) if name in sums else mean
        for name, rows in one.collected.items():
            whole.collected.setdefault(name, []).extend(rows)
    # In the order of the terms, which one that has had a batch knows.
    losses = {name: whole.losses[name] for name in latest.losses}
    metrics = {name: whole.metrics[name] for name in latest.metrics}
    return whole._replace(losses=losses, metrics=metrics)


def _to_tree(one: Measured) -> dict[str, Any]:
    means = {
        kind: {name: [mean.total, mean.count] for name, mean in sums.items()}
        for kind, sums in (("losses", one.losses), ("metrics", one.metrics))
    }
    return {**means, "weights": one.weights, "collected": one.collected, "last": one.last}


def _from_tree(tree: Any) -> Measured:
    losses = {name: Mean(*pair) for name, pair in tree["losses"].items()}
    metrics = {name: Mean(*pair) for name, pair in tree["metrics"].items()}
    weights = {name: torch.as_tensor(w) for name, w in tree["weights"].items()}
    return Measured(losses, metrics, weights, tree["collected"], tree["last"])


def _number(value: Any) -> float:
    return float(value)
