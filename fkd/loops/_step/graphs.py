"""What a step compiles: functions of tensors, without an effect on anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor

from fkd._base.mean import Mean
from fkd._base.trees import map_pairs
from fkd._base.types import Params, Scalars, TensorBatch
from fkd._blocks.sharing import repeated
from fkd._objective.apply import not_traceable
from fkd._objective.models import modules_of
from fkd._objective.objective import Objective
from fkd._objective.program import Parts
from fkd._objective.reach import backward_passes
from fkd._objective.reads import lengths_by_value
from fkd.parallel._objective import OverRanks, Share

from .._base.compile import CompileOptions, compiled, refuse_to_compile, sharing_of
from .by_model import Names
from .combine import Combined
from .gradient import Gradients, differentiated, norms_of, total_norm
from .loss_scale import LossScale, next_scale
from .together import scaled_all

Metrics: TypeAlias = dict[str, Tensor]
"""0-d tensors on the device: `loss/total`, `loss/<term>`, `grad_norm/<model>`, `skipped`, ..."""


class Computed(NamedTuple):
    """What the forward and backward passes of a step give.

    Attributes:
      grads: combined and clipped, by the models that are updated, in the order of the state.
      buffers, loss_state, combine_state: after the batch; the old ones if anything is not finite.
      measured: metrics.
      finite: `[]`, whether loss, gradient, and all that the batch leaves behind are.
      left_out: `[]`, 0 or 1, how many updates are left out for that.
      scale: of the loss at the next step, in float16.
    """

    grads: list[Tensor]
    buffers: dict[str, dict[str, Tensor]]
    loss_state: dict[str, object]
    combine_state: object
    measured: Metrics
    finite: Tensor
    left_out: Tensor
    scale: LossScale | None = None


class Graphs:
    """The functions of an objective that a step calls, each one graph for every batch shape.

    Args:
      objective: what is differentiated.
      options: for `torch.compile`; None does not compile.
      autocast: dtype in which models run their matrix products.
      clips: greatest norm of the gradient of some models together, by their names.
      models: those that are updated; the gradient by the others is not computed.
      combined: what makes one gradient of those of the terms; None adds them up.
      over: the objective on the examples of one rank, where several divide each batch.
    """

    def __init__(
        self,
        objective: Objective,
        options: CompileOptions | None,
        *,
        autocast: torch.dtype | None,
        clips: Mapping[Names, float],
        models: Names,
        combined: Combined | None = None,
        over: OverRanks | None = None,
    ) -> None:
        shared = objective if over is not None else _sharing(objective, options)
        self.objective: Objective | OverRanks = shared if over is None else over
        self.together = shared is not objective
        self.over = over
        self.autocast = autocast
        self.clips = {names: clip for names, clip in clips.items() if set(names) & set(models)}
        self.models = models
        self.combined = combined
        one_group = [backward_passes(objective.terms, models)]
        self.passes = combined.passes(objective, models) if combined is not None else one_group
        modules = modules_of(objective.models)
        lengths = lengths_by_value(objective.program.plan.refs)
        refuse_to_compile([*not_traceable(objective.models), *lengths], options)
        self.whole = compiled(self._whole, options, modules)
        self.part = compiled(self._part, options, modules)
        self.counts = compiled(self._counts, options, modules)
        self.finish = compiled(self.finished, options, modules)

    def _whole(
        self,
        parts: Parts,
        scalars: Scalars,
        batch: TensorBatch | Share,
        combine_state: object,
        scale: LossScale | None = None,
    ) -> Computed:
        """Everything, for a batch in one part."""
        new = self._differentiated(parts, scalars, batch, None, scale)
        share = self.share_of([batch], new.loss)
        return self.finished(new, parts, combine_state, share, scale=scale)

    def _part(
        self,
        sums: Sequence[Tensor],
        parts: Parts,
        scalars: Scalars,
        batch: TensorBatch | Share,
        counts: Mapping[str, Tensor],
        scale: LossScale | None = None,
    ) -> Gradients:
        """The gradients of a part of a batch, added to those of the parts before it."""
        new = self._differentiated(parts, scalars, batch, counts, scale)
        return Gradients([a + b for a, b in zip(sums, new.grads, strict=True)], *new[1:])

    def zeros(self, parts: Parts) -> list[Tensor]:
        """The gradients before the first part of a batch."""
        updated = self._updated(parts)
        one = [torch.zeros_like(p) for params in updated.values() for p in params.values()]
        return one + [torch.zeros_like(x) for _ in self.passes[1:] for x in one]

    def _updated(self, parts: Parts) -> Params:
        return {m: parts.trainable[m] for m in parts.trainable if m in self.models}

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
        scale: LossScale | None,
    ) -> Gradients:
        return differentiated(
            self.objective,
            parts,
            scalars,
            batch,
            counts=counts,
            autocast=self.autocast,
            groups=self.passes,
            scale=None if scale is None else scale["factor"],
        )

    def finished(
        self,
        new: Gradients,
        parts: Parts,
        combine_state: object,
        share: Tensor | None = None,
        counts: Mapping[str, Tensor] | None = None,
        scale: LossScale | None = None,
    ) -> Computed:
        """Sum over the ranks, combine, clip, and keep what the batch leaves behind if everything
        is finite. What is summed has the same bits on all ranks, and so has all that follows.

        Args:
          combine_state: what a combination of gradients remembers.
          share: `[]`, which part of the examples of the batch this rank has.
          counts: of the terms, over all parts and ranks; None: the means have them already.
          scale: by which the loss was multiplied on the way back; None: not at all.
        """
        if self.over is not None:
            assert share is not None
            cut = self.over.cut(self._updated(parts)) * len(self.passes)
            new = _summed(self.over, new, parts, share, counts, cut)
        grads, remembered, more = new.grads, combine_state, {}
        if self.combined is not None:
            grads, remembered, more = self.combined(new, self._updated(parts), combine_state)
        norms = self._norms(grads, self._updated(parts))
        total = total_norm(norms)
        buffers = {name: parts.buffers[name] for name in new.buffers}
        left = buffers, parts.loss_state, combine_state
        now = new.buffers, new.loss_state, remembered
        finite = torch.isfinite(total) & torch.isfinite(new.loss) & _still_finite(now, left)
        grads = self._clipped(grads, norms, parts)
        measured = {
            "loss/total": new.loss,
            **{f"loss/{name}": mean.value for name, mean in new.means.items()},
            # The same names at every step: nan for a model that rests.
            **{
                f"grad_norm/{m}": norms.get(m, torch.full_like(total, nan)) for m in parts.trainable
            },
            "grad_norm/total": total,
            "finite": finite.to(total.dtype),
            **more,
            **({} if scale is None else {"loss_scale": scale["factor"]}),
        }
        kept = map_pairs(lambda a, b: torch.where(finite, a, b), now, left)
        next_one = None if scale is None else next_scale(scale, finite)
        return Computed(grads, *kept, measured, finite, (~finite).to(total.dtype), next_one)

    def _norms(self, grads: Sequence[Tensor], updated: Params) -> dict[str, Tensor]:
        """The norm of the gradient of each model, over the rows of all ranks."""
        wide = bool(self.clips)
        if self.over is None or self.over.cutting is None:
            return norms_of(grads, updated, wide=wide, together=self.together)
        flags = self.over.cut(updated)
        rows = [g if cut else g.new_zeros(1) for g, cut in zip(grads, flags, strict=True)]
        others = [g.new_zeros(1) if cut else g for g, cut in zip(grads, flags, strict=True)]
        of_rows, of_others = (norms_of(part, updated, wide=wide) for part in (rows, others))
        squares = [norm.double().square() for norm in of_rows.values()]
        summed = self.over.cutting.parts.summed(squares)
        return {
            name: (part + norm.double().square()).sqrt().to(norm.dtype)
            for (name, norm), part in zip(of_others.items(), summed, strict=True)
        }

    def _clipped(
        self, grads: Sequence[Tensor], norms: Mapping[str, Tensor], parts: Parts
    ) -> list[Tensor]:
        """The gradients, those of models that are clipped together times one factor."""
        factors: dict[str, Tensor] = {}
        for names, clip in self.clips.items():
            among = {name: norms[name] for name in names if name in norms}
            factor = (clip / (total_norm(among) + 1e-6)).clamp(max=1.0)
            factors.update(dict.fromkeys(among, factor))
        rest = iter(grads)
        clipped: list[Tensor] = []
        for model, params in self._updated(parts).items():
            these = [next(rest) for _ in params]
            clipped += self._scaled(these, factors[model]) if model in factors else these
        return clipped

    def _scaled(self, grads: Sequence[Tensor], factor: Tensor) -> list[Tensor]:
        return scaled_all(grads, factor) if self.together else [g * factor for g in grads]

    def share_of(self, batches: Sequence[TensorBatch | Share], like: Tensor) -> Tensor | None:
        """`[]`, which part of the examples of some shares this rank has."""
        if self.over is None:
            return None
        shares = cast(Sequence[Share], batches)
        rows = sum(share.rows[self.over.ranks.rank] for share in shares)
        every = sum(sum(share.rows) for share in shares)
        return torch.full_like(like, rows / every)


def moving(scalars: Scalars) -> Metrics:
    """The weights and knobs that may have moved, for the log."""
    weights = [name for name in scalars if name.endswith("/weight")]
    return {
        **{f"weight/{name.removesuffix('/weight')}": scalars[name] for name in weights},
        **{f"knob/{name}": value for name, value in scalars.items() if name not in weights},
    }


def _sharing(objective: Objective, options: CompileOptions | None) -> Objective:
    """The objective with equal blocks compiled once, if a model has so many."""
    sharing = sharing_of(options)
    if sharing is None or objective.problems or objective.program.rewrite is not None:
        return objective
    modules = modules_of(objective.models).values()
    deep = any(repeated(module, sharing.least) for module in modules)
    return objective.sharing(sharing) if deep else objective


def _summed(
    over: OverRanks,
    new: Gradients,
    parts: Parts,
    share: Tensor,
    counts: Mapping[str, Tensor] | None,
    cut: Sequence[bool],
) -> Gradients:
    """What all ranks together have."""
    means = new.means
    if counts is not None:
        means = {name: Mean(mean.total, counts[name]) for name, mean in means.items()}
    grads, loss, means, buffers = over.summed(
        new.grads, new.loss, means, new.buffers, parts.buffers, share, cut
    )
    return Gradients(grads, loss, means, new.weights, buffers, new.loss_state)


def _still_finite(new: object, old: object) -> Tensor | bool:
    """Whether everything is finite that was: batch statistics after an outlier are not, and the
    constants of a mask never were."""
    checks: list[Tensor] = []

    def compare(a: Any, b: Any) -> None:
        if isinstance(a, Tensor) and a.is_floating_point() and a is not b:
            checks.append((torch.isfinite(a) | ~torch.isfinite(b)).all())

    # Not tree_leaves, which cannot be traced where a dict in the tree is empty.
    map_pairs(compare, new, old)
    return torch.stack(checks).all() if checks else True
