"""What a step compiles: functions of tensors, without an effect on anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fkd._mean import Mean
from fkd._objective.objective import Objective

from .._compile import compiled
from .._state import norms_of
from .gradient import gradients

Metrics: TypeAlias = dict[str, Tensor]
"""0-d tensors on the device: `loss/total`, `loss/<term>`, `grad_norm/<model>`, `skipped`, ..."""


class Gradients(NamedTuple):
    """What the differentiated function gives for one (part of a) batch.

    Attributes:
      grads: one for each trainable tensor, in the order of the state.
      loss: `[]`.
      means, weights: of the terms.
      buffers: of the trainable models; those of all others never change.
      loss_state: of the stateful terms.
    """

    grads: list[Tensor]
    loss: Tensor
    means: dict[str, Mean]
    weights: dict[str, Tensor]
    buffers: dict[str, dict[str, Tensor]]
    loss_state: dict[str, Any]


class Found(NamedTuple):
    """What the forward and backward passes of a step give.

    Attributes:
      gradients: clipped; buffers and loss state are the old ones if anything is not finite.
      measured: metrics.
      finite: `[]`, whether loss and gradient are.
    """

    gradients: Gradients
    measured: Metrics
    finite: Tensor


class Graphs:
    """The functions of an objective that a step calls, each one graph for every batch shape.

    The arguments `trainable, frozen, buffers, loss_state, scalars, batch` are those of the
    objective; tensors of `trainable` require grad.

    Args:
      objective: what is differentiated.
      options: for `torch.compile`; None does not compile.
      autocast: dtype in which models run their matrix products.
      clip: greatest norm of the gradient.
    """

    def __init__(
        self,
        objective: Objective,
        options: Mapping[str, Any] | None,
        *,
        autocast: torch.dtype | None,
        clip: float | None,
    ) -> None:
        self.objective = objective
        self.autocast = autocast
        self.clip = clip
        self.whole = compiled(self._whole, options)
        self.part = compiled(self._part, options)
        self.counts = compiled(self._counts, options)
        self.finish = compiled(self._finish, options)

    def _whole(
        self, trainable: Any, frozen: Any, buffers: Any, loss_state: Any, scalars: Any, batch: Any
    ) -> Found:
        """Everything, for a batch in one part."""
        found = self._gradients(trainable, frozen, buffers, loss_state, scalars, batch, None)
        return self._finish(found, trainable, buffers, loss_state)

    def _part(
        self,
        grads: list[Tensor],
        trainable: Any,
        frozen: Any,
        buffers: Any,
        loss_state: Any,
        scalars: Any,
        batch: Any,
        counts: Mapping[str, Tensor],
    ) -> Gradients:
        """The gradients of a part of a batch, added to those of the parts before it."""
        found = self._gradients(trainable, frozen, buffers, loss_state, scalars, batch, counts)
        sums = [a + b for a, b in zip(grads, found.grads, strict=True)]
        return Gradients(sums, *found[1:])

    def _counts(
        self, trainable: Any, frozen: Any, buffers: Any, loss_state: Any, scalars: Any, batch: Any
    ) -> dict[str, Tensor]:
        """How many positions each term counts. Compiled, everything else is dead code."""
        _, aux = self.objective(
            trainable,
            frozen,
            buffers,
            batch,
            loss_state=loss_state,
            scalars=scalars,
            autocast=self.autocast,
        )
        return {name: mean.count for name, mean in aux.terms.items()}

    def _gradients(
        self,
        trainable: Any,
        frozen: Any,
        buffers: Any,
        loss_state: Any,
        scalars: Any,
        batch: Any,
        counts: Mapping[str, Tensor] | None,
    ) -> Gradients:
        leaves = [p for held in trainable.values() for p in held.values()]
        with torch.enable_grad():
            loss, aux = self.objective(
                trainable,
                frozen,
                buffers,
                batch,
                loss_state=loss_state,
                scalars=scalars,
                counts=counts,
                autocast=self.autocast,
            )
            grads = gradients(loss, leaves)
        aux = pytree.tree_map_only(Tensor, torch.detach, aux)
        moved = {n: aux.buffers[n] for n in buffers if self.objective.models[n].kind == "trainable"}
        return Gradients(grads, loss.detach(), aux.terms, aux.weights, moved, aux.loss_state)

    def _finish(self, found: Gradients, trainable: Any, buffers: Any, loss_state: Any) -> Found:
        """Clip, and keep the old buffers and loss state if anything is not finite."""
        norms = norms_of(found.grads, trainable)
        total = torch.stack([n**2 for n in norms.values()]).sum().sqrt()
        finite = torch.isfinite(total) & torch.isfinite(found.loss)
        grads = found.grads
        if self.clip is not None:
            factor = (self.clip / (total + 1e-6)).clamp(max=1.0)
            grads = [g * factor for g in grads]

        def kept(new: Any, old: Any) -> Any:
            return pytree.tree_map(lambda a, b: torch.where(finite, a, b), new, old)

        old = {name: buffers[name] for name in found.buffers}
        # Not by _replace, whose class torch 2.11 cannot name when it compiles.
        new = kept(found.buffers, old), kept(found.loss_state, loss_state)
        found = Gradients(grads, found.loss, found.means, found.weights, *new)
        measured = {
            "loss/total": found.loss,
            **{f"loss/{n}": m.value for n, m in found.means.items()},
            **{f"grad_norm/{n}": v for n, v in norms.items()},
            "grad_norm/total": total,
            "finite": finite.to(total.dtype),
        }
        return Found(found, measured, finite)
