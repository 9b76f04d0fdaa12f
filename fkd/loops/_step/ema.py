"""Models that follow another one: e = decay e + (1 - decay) student."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fkd._objective.apply import Model

from .._state import State


@torch.no_grad()
def follow(
    models: Mapping[str, Model], state: State, scalars: Mapping[str, Tensor], finite: Tensor
) -> None:
    """Move the EMA models of a state in place, unless the update was left out.

    Args:
      models: of the objective.
      state: after the update.
      scalars: the moving knobs, decays among them.
      finite: `[]`, whether the update was done.
    """
    done = finite.to(torch.get_default_dtype())
    for name, model in models.items():
        if model.kind != "ema":
            continue
        # 1 - decay, and 0 where the update was left out: nothing here is sent to the device.
        share = done - done * scalars.get(f"{name}/decay", model.decay)
        sources = [state.trainable.get(model.of, {}), state.buffers.get(model.of, {})]
        targets = [state.frozen.get(name, {}), state.buffers.get(name, {})]
        pairs = [(b[k], a[k]) for a, b in zip(sources, targets, strict=True) for k in a]
        by_dtype: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
        for e, x in pairs:
            by_dtype.setdefault(e.dtype, []).append((e, x if x.dtype is e.dtype else x.to(e.dtype)))
        for dtype, same in by_dtype.items():
            old, new = [e for e, _ in same], [x for _, x in same]
            if dtype.is_floating_point:
                torch._foreach_lerp_(old, new, [share.to(dtype)] * len(old))  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
            else:
                for e, x in same:
                    e.copy_(torch.where(finite, x, e))
