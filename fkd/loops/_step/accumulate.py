"""A batch in parts: its gradient is that of the whole, whatever the parts count."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fkd._mean import Mean

from .._random import fold_in, seeded
from .._state import device_of
from .graphs import Found, Gradients, Graphs


def accumulated(
    graphs: Graphs,
    tensors: Sequence[Any],
    scalars: Mapping[str, Tensor],
    parts: Sequence[Any],
    seed: int,
    *,
    keep: Callable[[Gradients], Gradients],
    host: bool,
) -> Found:
    """Counts of all parts first, then the gradients of totals divided by the merged counts.

    Args:
      graphs: what is computed.
      tensors: trainable, frozen, buffers and loss state.
      scalars: the moving knobs.
      parts: of a batch.
      seed: from which the randomness of every part follows.
      host: the generators of Python and NumPy are seeded as well.
      keep: what makes tensors safe from the next call of a graph.
    """
    trainable, frozen, buffers, loss_state = tensors
    device = device_of(trainable)
    seeds = [fold_in(seed, i + 1) for i in range(len(parts))]
    counts: dict[str, Tensor] = {}
    for part, own in zip(parts, seeds, strict=True):
        with seeded(own, device, host=host):
            found = graphs.counts(trainable, frozen, buffers, loss_state, scalars, part)
        counts = {n: c + counts[n] if n in counts else c.clone() for n, c in found.items()}
    sums = [torch.zeros_like(p) for held in trainable.values() for p in held.values()]
    so_far = Gradients(sums, torch.zeros((), device=device), {}, {}, buffers, loss_state)
    for part, own in zip(parts, seeds, strict=True):
        now = {**buffers, **so_far.buffers}
        with seeded(own, device, host=host):
            found = graphs.part(
                so_far.grads, trainable, frozen, now, so_far.loss_state, scalars, part, counts
            )
        so_far = _merged(so_far, keep(found))
    return graphs.finish(so_far, trainable, buffers, loss_state)


def _merged(so_far: Gradients, found: Gradients) -> Gradients:
    """With one more part, whose sums of gradients, buffers and states are the newest."""
    before = so_far.means
    means: dict[str, Mean] = {
        n: m.merge(before[n]) if n in before else m for n, m in found.means.items()
    }
    return found._replace(loss=so_far.loss + found.loss, means=means)
