"""An objective of which every rank has some examples of the batch.

The loss of a batch is  sum_t w_t T_t / C_t  with totals T and counts C over all ranks. A rank that
knows C differentiates its own part,  sum_t w_t T_t^rank / C_t , and the gradient of the batch is
the sum of these. So a step has one small all-reduce of counts before the division, and one of
the gradients after it, in which the totals travel.

A term that relates the examples of a batch is computed by every rank on the examples of all:
totals and counts are each `size` times too large in the sum over the ranks, and cancel; and the
gradient that the gathering sums over the ranks is the whole one, in `size` equal parts.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fkd._base.mean import Mean, divide
from fkd._base.trees import map_tensors
from fkd._base.types import Scalars, TensorBatch
from fkd._objective.evaluation import BoundTerms, Evaluation
from fkd._objective.objective import Aux, Objective
from fkd._objective.plan import Plan
from fkd._objective.program import Parts, Pass, make_program
from fkd._refs.derived import Function
from fkd._refs.refs import Param, node, walk

from ._layout import gathering_again
from ._norm import batch_norms, over_ranks, presence
from ._ranks import Ranks, Rows
from ._relating import Relations, leaves_of, tensors_in
from ._shards import Cutting


class Share(NamedTuple):
    """The examples of a batch that one rank has.

    Attributes:
      batch: its own examples; one arbitrary example if it has none.
      rows: how many examples each rank has.
    """

    batch: TensorBatch
    rows: Rows


class OverRanks:
    """An objective as a function of the examples of one rank, called as the objective itself.

    Args:
      objective: of the whole batch.
      ranks: among which each batch is divided.
      relations: which terms relate the examples of a batch.
      cutting: how the parameters are cut; None: every rank has all.
    """

    def __init__(
        self,
        objective: Objective,
        ranks: Ranks,
        relations: Relations,
        cutting: Cutting | None = None,
    ) -> None:
        self.objective, self.ranks, self.cutting = objective, ranks, cutting
        terms = {name: t for name, t in objective.terms.items() if name not in relations.terms}
        related = {name: objective.terms[name] for name in objective.terms if name not in terms}
        refs = [ref for term in related.values() for ref in term.refs]
        leaves = leaves_of(refs, relations.called)
        functions = [r for ref in refs for r in walk(ref) if isinstance(node(r), Function)]
        self._reads_context = bool(functions)
        plan = Plan([*(r for term in terms.values() for r in term.refs), *leaves, *functions])
        self._plan = Plan(refs, known=leaves)
        self._inputs = [
            (self._plan.place[leaf], plan.place[leaf], relations.by_example.get(leaf))
            for leaf in leaves
        ]
        self._parameters = frozenset(
            plan.place[leaf] for leaf in leaves if isinstance(node(leaf), Param)
        )
        self.terms = BoundTerms(terms, plan.place)
        self.related = BoundTerms(related, self._plan.place)
        before = objective.program
        self.program = make_program(plan, before.models, before.adapters, rewrite=self)
        self._buffers = _averaged_buffers(objective)

    def skeleton(self, name: str, copied: Any) -> Any:
        """A skeleton with batch statistics over the ranks, that gathers what is cut."""
        copied = copied if self.cutting is None else self.cutting.skeleton(name, copied)
        return over_ranks(copied, self.ranks) if copied.training else copied

    def parameter(self, name: str, parameter: str, tensor: Tensor) -> Tensor:
        """A whole parameter, for a ref to it."""
        cutting = self.cutting
        return tensor if cutting is None else cutting.parameter(name, parameter, tensor)

    @property
    def models(self) -> Mapping[str, Any]:
        """The models by name."""
        return self.objective.models

    def __call__(
        self,
        parts: Parts,
        batch: Share,
        *,
        scalars: Scalars,
        counts: Mapping[str, Tensor] | None = None,
        autocast: torch.dtype | None = None,
    ) -> tuple[Tensor, Aux]:
        """The part of the loss that this rank differentiates, and what else there is.

        Args:
          parts: as of the objective.
          batch: the share of this rank.
          scalars: the moving knobs.
          counts: merged over all ranks and parts of the batch; None: the ranks merge them here.
          autocast: as of the objective.

        Returns:
          `[]`, and an `Aux`: its means have the totals of this rank, over the counts of all.
        """
        rows = batch.rows
        present = rows[self.ranks.rank] > 0
        marked = self._marked(parts, present)
        eager = self.cutting is not None and not torch.compiler.is_compiling()
        with gathering_again() if eager else contextlib.nullcontext():
            forward = self.program.context(marked, batch.batch, autocast=autocast)
            values = self.program.values(forward.context)
        evaluated = self.terms.evaluate(values, scalars, {}, autocast=autocast)
        means = {name: _counting(mean, present) for name, mean in evaluated.means.items()}
        related = self._evaluate_related(forward, values, rows, scalars, parts.loss_state, autocast)
        means.update(related.means)
        means = {**{name: means[name] for name in self.objective.terms}, **means}
        all_weights = {**evaluated.weights, **related.weights}
        weights = {name: all_weights[name] for name in means if name in all_weights}
        own_counts = {name: mean.count for name, mean in means.items()}
        merged = self.ranks.merged(own_counts) if counts is None else counts
        parts_of_loss = [w * divide(means[name].total, merged[name]) for name, w in weights.items()]
        # With given counts, the means go on being merged: over the other parts of the batch.
        divided = own_counts if counts is not None else merged
        aux = {name: Mean(mean.total, divided[name]) for name, mean in means.items()}
        loss = torch.stack(parts_of_loss).sum()
        return loss, Aux(aux, weights, forward.buffers, related.loss_state)

    def _evaluate_related(
        self,
        forward: Pass,
        values: Sequence[Any],
        rows: Rows,
        scalars: Scalars,
        loss_state: Mapping[str, Any],
        autocast: torch.dtype | None,
    ) -> Evaluation:
        """The terms that relate examples, on those of all ranks."""
        if not self.related.terms:
            return Evaluation({}, {}, {})
        inputs = {
            place: values[at] if at in self._parameters else self._whole(values[at], rows, flags)
            for place, at, flags in self._inputs
        }
        context = forward.context
        if self._reads_context:
            every = {name: self._whole(x, rows) for name, x in context.values.items()}
            taps = {name: self._whole(x, rows) for name, x in context.taps.items()}
            context = dataclasses.replace(context, values=every, taps=taps)
        everything = self._plan.compute(context, inputs)
        return self.related.evaluate(everything, scalars, loss_state, autocast=autocast)

    def _whole(self, value: Any, rows: Rows, by_example: tuple[bool, ...] | None = None) -> Any:
        """A value with the examples of all ranks."""
        here = max(rows[self.ranks.rank], 1)
        flags = by_example
        if flags is None or len(flags) != len(tensors_in(value)):
            flags = tuple(x.ndim > 0 and x.shape[0] == here for x in tensors_in(value))
        left = iter(flags)
        return map_tensors(lambda x: self.ranks.whole(x, rows) if next(left) else x, value)

    def _marked(self, parts: Parts, present: bool) -> Parts:
        """With the word to batch statistics that this rank has no examples, if it has none."""
        if present:
            return parts
        frozen = dict(parts.frozen)
        for name, model in self.objective.models.items():
            if model.kind == "trainable" and model.module is not None:
                device = next(iter(parts.trainable.get(name, frozen.get(name, {})).values())).device
                marks = presence(model.module, torch.zeros((), device=device))
                frozen[name] = {**frozen.get(name, {}), **marks}
        return Parts(parts.trainable, frozen, parts.buffers, parts.loss_state)

    def summed(
        self,
        grads: Sequence[Tensor],
        loss: Tensor,
        means: Mapping[str, Mean],
        buffers: Mapping[str, Mapping[str, Tensor]],
        before: Mapping[str, Mapping[str, Tensor]],
        share: Tensor,
        cut: Sequence[bool],
    ) -> tuple[list[Tensor], Tensor, dict[str, Mean], dict[str, dict[str, Tensor]]]:
        """What all ranks together have: gradients, loss, totals; and one version of the buffers.

        Batch statistics are those of all ranks already. Any other floating-point buffer moves by
        the mean of its moves, each rank weighted by its examples, which is exact for running means.

        Args:
          grads, loss, means, buffers: of this rank; the counts are those of all.
          before: the buffers as they were.
          share: `[]`, which part of the examples of the batch this rank has.
          cut: of which gradients this rank has some rows, summed already over those that have
            the others.
        """
        places = [(m, n) for m, tensors in buffers.items() for n in tensors]
        places = [(m, n) for m, n in places if n in self._buffers.get(m, ())]
        moves = [_moved(buffers[m][n], before[m][n], share) for m, n in places]
        totals = [mean.total for mean in means.values()]
        of_all = [grad for grad, is_cut in zip(grads, cut, strict=True) if not is_cut]
        count = len(of_all)
        every = self.ranks.summed([*of_all, loss, *totals, *moves])
        merged = {
            name: Mean(total, mean.count)
            for (name, mean), total in zip(means.items(), every[count + 1 :], strict=False)
        }
        now = {m: dict(tensors) for m, tensors in buffers.items()}
        for (m, n), move in zip(places, every[count + 1 + len(totals) :], strict=True):
            now[m][n] = before[m][n] + move
        rows = [grad for grad, is_cut in zip(grads, cut, strict=True) if is_cut]
        copies = self.cutting.copies if self.cutting is not None else None
        left, right = iter(every[:count]), iter(rows if copies is None else copies.summed(rows))
        summed = [next(right) if is_cut else next(left) for is_cut in cut]
        return summed, every[count], merged, now

    def cut(self, trainable: Mapping[str, Mapping[str, Tensor]]) -> list[bool]:
        """Of which parameters this rank has some rows, in the order of the state."""
        layouts = {} if self.cutting is None else self.cutting.layouts
        return [n in layouts.get(m, {}) for m, tensors in trainable.items() for n in tensors]


def _counting(mean: Mean, present: bool) -> Mean:
    """The mean of a rank; of one without examples it adds nothing, and no gradient."""
    if present:
        return mean
    nothing = torch.zeros((), dtype=torch.bool, device=mean.total.device)
    return Mean(torch.where(nothing, mean.total, 0.0), torch.zeros_like(mean.count))


def _moved(now: Tensor, before: Tensor, share: Tensor) -> Tensor:
    """How far a buffer moved, weighted; 0 where it did not, also where it is infinite."""
    return torch.where(now == before, torch.zeros_like(now), (now - before) * share.to(now.dtype))


def _averaged_buffers(objective: Objective) -> dict[str, frozenset[str]]:
    """The names of the buffers that a rank moves by itself: of models that train, and not of
    batch normalisations."""
    names: dict[str, frozenset[str]] = {}
    for name, model in objective.models.items():
        module = model.module
        if model.kind != "trainable" or module is None:
            continue
        norms = tuple(f"{path}." if path else "" for path in batch_norms(module))
        names[name] = frozenset(
            n
            for n, b in module.named_buffers()
            if b.is_floating_point() and not (norms and n.startswith(norms))
        )
    return names
