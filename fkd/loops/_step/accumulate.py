"""A batch in parts: its gradient is that of the whole, whatever the parts count."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fkd._base.mean import Mean
from fkd._base.types import Scalars, TensorBatch
from fkd._objective.program import Parts
from fkd.parallel._objective import Share

from .._base.random import fold_in, seeded
from .._base.state import device_of
from .gradient import Gradients
from .graphs import Computed, Graphs
from .loss_scale import LossScale


def accumulated(
    graphs: Graphs,
    parts: Parts,
    scalars: Scalars,
    batches: Sequence[TensorBatch | Share],
    seed: int,
    combine_state: object,
    scale: LossScale | None = None,
    *,
    keep: Callable[[Gradients], Gradients],
    host: bool,
) -> Computed:
    """Counts of all parts first, then the gradients of totals divided by the merged counts.

    Args:
      graphs: what is computed.
      parts: of the objective.
      scalars: the moving knobs.
      batches: the parts of a batch.
      seed: from which the randomness of every part follows.
      combine_state: what a combination of gradients remembers.
      scale: of the loss, in float16.
      keep: what makes tensors safe from the next call of a graph.
      host: whether Python's and NumPy's generators are seeded, too.
    """
    device = device_of(parts.trainable)
    seeds = [fold_in(seed, i + 1) for i in range(len(batches))]
    counts: dict[str, Tensor] = {}
    for batch, part_seed in zip(batches, seeds, strict=True):
        with seeded(part_seed, device, host=host):
            counted = graphs.counts(parts, scalars, batch)
        counts = {n: c + counts[n] if n in counts else c.clone() for n, c in counted.items()}
    loss = torch.zeros((), device=device)
    so_far = Gradients(graphs.zeros(parts), loss, {}, {}, parts.buffers, parts.loss_state)
    for batch, part_seed in zip(batches, seeds, strict=True):
        buffers = {**parts.buffers, **so_far.buffers}
        now = Parts(parts.trainable, parts.frozen, buffers, so_far.loss_state)
        with seeded(part_seed, device, host=host):
            new = graphs.part(so_far.grads, now, scalars, batch, counts, scale)
        so_far = _merged(so_far, keep(new))
    if graphs.over is None:
        return graphs.finish(so_far, parts, combine_state, scale=scale)
    share = graphs.share_of(batches, loss)
    return graphs.finish(so_far, parts, combine_state, share, counts, scale)


def _merged(so_far: Gradients, new: Gradients) -> Gradients:
    """With one more part, whose sums of gradients, buffers and states are the newest."""
    before = so_far.means
    means: dict[str, Mean] = {
        name: mean.merge(before[name]) if name in before else mean
        for name, mean in new.means.items()
    }
    return new._replace(loss=so_far.loss + new.loss, means=means)
