"""Models that follow another one: e = decay e + (1 - decay) student."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from fkd._objective.models import Model

from .._base.state import State


def follow(
    models: Mapping[str, Model],
    state: State,
    scalars: Mapping[str, Tensor],
    finite: Tensor,
    updated: Sequence[str],
) -> None:
    """Move the EMA models of a state in place, unless the update was left out.

    Args:
      models: of the objective.
      state: after the update.
      scalars: the moving knobs, decays among them.
      finite: `[]`, whether the update was done.
      updated: the trainable models that this step updates; a model that follows another one
        stands still with it.
    """
    followers = {n: m for n, m in models.items() if m.kind == "ema" and m.of in updated}
    if followers:  # the host's time counts in every step
        with torch.no_grad():
            _follow(followers, state, scalars, finite)


def _follow(
    followers: Mapping[str, Model],
    state: State,
    scalars: Mapping[str, Tensor],
    finite: Tensor,
) -> None:
    done = finite.to(torch.get_default_dtype())
    for name, model in followers.items():
        # 1 - decay, and 0 where the update was left out: nothing here is sent to the device.
        decay = scalars.get(f"{name}/decay", cast(float, model.decay))
        share = done - done * decay
        sources = [state.trainable.get(model.of, {}), state.buffers.get(model.of, {})]
        targets = [state.frozen.get(name, {}), state.buffers.get(name, {})]
        pairs = [(b[k], a[k]) for a, b in zip(sources, targets, strict=True) for k in a]
        move(pairs, share, finite)


def move(pairs: Iterable[tuple[Tensor, Tensor]], share: Tensor, done: Tensor) -> None:
    """Move the first tensor of each pair towards the second, in place: e += share (x - e).

    Args:
      pairs: the average and what it follows. Integers (how many batches were counted) are not
        averaged but copied.
      share: `[]`, 1 - decay.
      done: `[]`, False leaves integers as they are.
    """
    by_dtype: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
    for average, new in pairs:
        new = new if new.dtype is average.dtype else new.to(average.dtype)
        by_dtype.setdefault(average.dtype, []).append((average, new))
    for dtype, same in by_dtype.items():
        averages, news = [average for average, _ in same], [new for _, new in same]
        if dtype.is_floating_point:
            torch._foreach_lerp_(averages, news, [share.to(dtype)] * len(same))  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        else:
            for average, new in same:
                average.copy_(torch.where(done, new, average))
