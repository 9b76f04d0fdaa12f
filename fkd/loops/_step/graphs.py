"""What a step compiles: functions of tensors, without an effect on anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import optree
import torch
from torch import Tensor

from fkd._mean import Mean
from fkd._objective.apply import modules_of, not_traceable
from fkd._objective.objective import Objective
from fkd._objective.program import Parts
from fkd._types import Scalars, TensorBatch
from fkd.parallel._objective import OverRanks, Share

from .._compile import compiled, refuse_to_compile
from .gradient import Gradients, differentiated, norms_of, total_norm

Metrics: TypeAlias = dict[str, Tensor]
"""0-d tensors on the device: `loss/total`, `loss/<term>`, `grad_norm/<model>`, `skipped`, ..."""


class Computed(NamedTuple):
    """What the forward and backward passes of a step give.

    Attributes:
      gradients: clipped; buffers and loss state are the old ones if anything is not finite.
      measured: metrics.
      finite: `[]`, whether loss, gradient, and all that the batch leaves behind are.
    """

    gradients: Gradients
    measured: Metrics
    finite: Tensor


class Graphs:
    """The functions of an objective that a step calls, each one graph for every batch shape.

    Args:
      objective: what is differentiated.
      options: for `torch.compile`; None does not compile.
      autocast: dtype in which models run their matrix products.
      clip: greatest norm of the gradient.
      over: the objective on the examples of one rank, where several divide each batch.
    """

    def __init__(
        self,
        objective: Objective,
        options: Mapping[str, Any] | None,
        *,
        autocast: torch.dtype | None,
        clip: float | None,
        over: OverRanks | None = None,
    ) -> None:
        self.objective: Objective | OverRanks = objective if over is None else over
        self.over = over
        self.autocast = autocast
        self.clip = clip
        modules = modules_of(objective.models)
        refuse_to_compile(not_traceable(objective.models), options)
        self.whole = compiled(self._whole, options, modules)
        self.part = compiled(self._part, options, modules)
        self.counts = compiled(self._counts, options, modules)
        self.finish = compiled(self._finish, options, modules)

    def _whole(self, parts: Parts, scalars: Scalars, batch: TensorBatch | Share) -> Computed:
        """Everything, for a batch in one part."""
        new = self._differentiated(parts, scalars, batch, None)
        return self._finish(new, parts, self.share_of([batch], new.loss))

    def _part(
        self,
        sums: Sequence[Tensor],
        parts: Parts,
        scalars: Scalars,
        batch: TensorBatch | Share,
        counts: Mapping[str, Tensor],
    ) -> Gradients:
        """The gradients of a part of a batch, added to those of the parts before it."""
        new = self._differentiated(parts, scalars, batch, counts)
        return Gradients([a + b for a, b in zip(sums, new.grads, strict=True)], *new[1:])

    def _counts(
        self, parts: Parts, scalars: Scalars, batch: TensorBatch | Share
    ) -> dict[str, Tensor]:
        """How many positions each term counts, on all ranks. Compiled, everything else is dead
        code."""
        call: Any = self.objective
        _, aux = call(parts, batch, scalars=scalars, autocast=self.autocast)
        return {name: mean.count for name, mean in aux.terms.items()}

    def _differentiated(
        self,
        parts: Parts,
        scalars: Scalars,
        batch: TensorBatch | Share,
        counts: Mapping[str, Tensor] | None,
    ) -> Gradients:
        return differentiated(
            self.objective, parts, scalars, batch, counts=counts, autocast=self.autocast
        )

    def _finish(
        self,
        new: Gradients,
        parts: Parts,
        share: Tensor | None = None,
        counts: Mapping[str, Tensor] | None = None,
    ) -> Computed:
        """Sum over the ranks, clip, and keep the old buffers and loss state if anything is not
        finite. What is summed has the same bits on all ranks, and so has all that follows.

        Args:
          share: `[]`, which part of the examples of the batch this rank has.
          counts: of the terms, over all parts and ranks; None: the means have them already.
        """
        if self.over is not None:
            assert share is not None
            new = _summed(self.over, new, parts, share, counts)
        norms = norms_of(new.grads, parts.trainable, wide=self.clip is not None)
        total = total_norm(norms)
        left: Any = {name: parts.buffers[name] for name in new.buffers}, parts.loss_state
        finite = torch.isfinite(total) & torch.isfinite(new.loss)
        finite = finite & _still_finite((new.buffers, new.loss_state), left)
        grads = new.grads
        if self.clip is not None:
            factor = (self.clip / (total + 1e-6)).clamp(max=1.0)
            grads = [g * factor for g in grads]
        measured = {
            "loss/total": new.loss,
            **{f"loss/{name}": mean.value for name, mean in new.means.items()},
            **{f"grad_norm/{name}": norm for name, norm in norms.items()},
            "grad_norm/total": total,
            "finite": finite.to(total.dtype),
        }
        kept: Any = optree.tree_map(
            lambda a, b: torch.where(finite, a, b), cast(Any, (new.buffers, new.loss_state)), left
        )
        # Not by _replace, whose class torch 2.11 cannot name when it compiles.
        clipped = Gradients(grads, new.loss, new.means, new.weights, kept[0], kept[1])
        return Computed(clipped, measured, finite)

    def share_of(self, batches: Sequence[Any], like: Tensor) -> Tensor | None:
        """`[]`, which part of the examples of some shares this rank has."""
        if self.over is None:
            return None
        own = sum(batch.rows[self.over.ranks.rank] for batch in batches)
        every = sum(sum(batch.rows) for batch in batches)
        return torch.full_like(like, own / every)


def _summed(
    over: OverRanks,
    new: Gradients,
    parts: Parts,
    share: Tensor,
    counts: Mapping[str, Tensor] | None,
) -> Gradients:
    """What all ranks together have."""
    means = new.means
    if counts is not None:
        means = {name: Mean(mean.total, counts[name]) for name, mean in means.items()}
    grads, loss, means, buffers = over.summed(
        new.grads, new.loss, means, new.buffers, parts.buffers, share
    )
    return Gradients(grads, loss, means, new.weights, buffers, new.loss_state)


def _still_finite(new: Any, old: Any) -> Tensor | bool:
    """Whether everything is finite that was: batch statistics after an outlier are not, and the
    constants of a mask never were."""
    checks: list[Tensor] = []

    def compare(a: Any, b: Any) -> None:
        if isinstance(a, Tensor) and a.is_floating_point() and a is not b:
            checks.append((torch.isfinite(a) | ~torch.isfinite(b)).all())

    # tree_map, since tree_leaves cannot be traced where a dict in the tree is empty.
    optree.tree_map(compare, new, old)
    return torch.stack(checks).all() if checks else True
