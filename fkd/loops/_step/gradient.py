"""The gradient of an objective, by plain autograd, inside a compiled graph too."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fkd._base.mean import Mean
from fkd._base.trees import map_tensors
from fkd._base.types import Params, Scalars, TensorBatch
from fkd._objective.evaluation import contributions
from fkd._objective.objective import Objective
from fkd._objective.program import Parts
from fkd._objective.reach import Backward, backward_passes
from fkd.parallel._objective import OverRanks, Share

from .together import norm_of_all

BIG, SHRINK = 2.0**50, 2.0**-60
"""From where on an entry is squared in another scale: its square may overflow float32."""


class Gradients(NamedTuple):
    """What the differentiated function gives for one (part of a) batch.

    Attributes:
      grads: one for each trainable tensor that is updated, in the order of the state; where
        gradients are combined, those of one group of terms after those of the other.
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
    loss_state: dict[str, object]


def differentiated(
    objective: Objective | OverRanks,
    parts: Parts,
    scalars: Scalars,
    batch: TensorBatch | Share,
    *,
    counts: Mapping[str, Tensor] | None = None,
    autocast: torch.dtype | None = None,
    groups: Sequence[Sequence[Backward]] | None = None,
    scale: Tensor | None = None,
) -> Gradients:
    """The loss of a batch, its gradient, and what the forward pass leaves behind.

    Args:
      objective: what is differentiated; see `Objective.__call__` for the other arguments. One of
        which every rank has some examples gives what this rank adds to the gradient.
      parts: its trainable tensors require grad.
      groups: the backward passes of each group of terms; by default one group of all terms, for
        all trainable models.
      scale: `[]`, a power of two by which the loss is multiplied on the way back, so that small
        gradients in float16 are not 0; the gradient itself is without it.
    """
    if groups is None:
        assert isinstance(objective, Objective)
        groups = [backward_passes(objective.terms, parts.trainable)]
    with torch.enable_grad():
        call: Any = objective
        loss, aux = call(parts, batch, scalars=scalars, counts=counts, autocast=autocast)
        whole = [one.terms for passes in groups for one in passes] == [tuple(aux.weights)]
        total = Total(loss, {} if whole else contributions(aux.terms, aux.weights, counts), scale)
        grads = [grad for passes in groups for grad in of_group(total, passes, parts.trainable)]
    means, weights, buffers, loss_state = map_tensors(torch.detach, tuple(aux))
    kinds = {name: model.kind for name, model in objective.models.items()}
    moved = {name: buffers[name] for name in parts.buffers if kinds[name] == "trainable"}
    return Gradients(grads, loss.detach(), means, weights, moved, loss_state)


class Total(NamedTuple):
    """A loss, and what each term adds to it (where some passes begin at a part of the terms)."""

    loss: Tensor
    shares: dict[str, Tensor]
    scale: Tensor | None = None


def of_group(total: Total, passes: Sequence[Backward], trainable: Params) -> list[Tensor]:
    """The gradient of a group of terms by the models of its passes, in the order of the state."""
    by_model: dict[str, list[Tensor]] = {}
    for terms, models in passes:
        leaves = [p for model in models for p in trainable[model].values()]
        # Graphs are kept for other passes; the last reference to the loss frees them.
        end, scale = _end(total, terms), total.scale
        flat = gradients(end if scale is None else end * scale, leaves, keep=bool(total.shares))
        flat = iter(flat if scale is None else [grad / scale for grad in flat])
        for model in models:
            by_model[model] = [next(flat) for _ in trainable[model]]
    return [grad for model in trainable if model in by_model for grad in by_model[model]]


def _end(total: Total, terms: Sequence[str]) -> Tensor:
    """Where a backward pass begins: the sum of what its terms add to the loss."""
    if not total.shares:
        return total.loss
    shares = [total.shares[name] for name in terms]
    return torch.stack(shares).sum() if shares else total.loss.detach()


def gradients(loss: Tensor, leaves: Sequence[Tensor], *, keep: bool = False) -> list[Tensor]:
    """The derivative of a loss by each leaf; zeros where it does not depend on it.

    Not torch.func.grad, which inside torch.compile (torch 2.11 to 2.13) differentiates the
    forward of an `autograd.Function` and silently ignores its backward. The graph, the speed
    and, for other functions, the bits are the same.

    Args:
      loss: `[]`.
      leaves: tensors that require grad.
      keep: whether the graph is used again.
    """
    if not loss.requires_grad or not leaves:
        return [torch.zeros_like(x) for x in leaves]
    # torch declares tensors, and gives None where there is no path.
    grads: list[Tensor | None] = [
        *torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=keep)
    ]
    return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads, strict=True)]


def by_names(grads: Iterator[Tensor], trainable: Params) -> dict[str, dict[str, Tensor]]:
    """The next gradients as a tree like the parameters."""
    return {m: {name: next(grads) for name in params} for m, params in trainable.items()}


def norms_of(
    grads: Sequence[Tensor], trainable: Params, *, wide: bool, together: bool = False
) -> dict[str, Tensor]:
    """The norm of the gradient of each model, in float32.

    Args:
      grads: in the order of the state.
      trainable: of the state, those models that are updated.
      wide: finite up to 1e38, as clipping needs it. Otherwise infinite where a square is
        (from 1.8e19 on), which an optimizer could not compute either.
      together: of all gradients of a model in one operation, which a compiler leaves as it is.
    """
    flat = iter(grads)
    norm = _wide_norm if wide else plain_norm
    if together:
        norm = functools.partial(norm_of_all, wide=wide)
    return {name: norm([next(flat) for _ in params]) for name, params in trainable.items()}


def total_norm(norms: Mapping[str, Tensor]) -> Tensor:
    """`[]`, the norm over all models from those of each; no square overflows."""
    each = torch.stack(list(norms.values()))
    greatest = each.max().clamp(min=1e-30)
    return (each / greatest).square().sum().sqrt() * greatest


def plain_norm(grads: Sequence[Tensor]) -> Tensor:
    """`[]`, the norm over some tensors, in float32."""
    return torch.stack([grad.float().square().sum() for grad in grads]).sum().sqrt()


def _wide_norm(grads: Sequence[Tensor]) -> Tensor:
    """In one pass: large entries are squared in another scale, so that no square overflows."""
    small, large = zip(*map(_squares, grads), strict=True)
    small_norm, large_norm = (torch.stack(sums).sum().sqrt() for sums in (small, large))
    return torch.where(large_norm > 0, torch.hypot(small_norm, large_norm / SHRINK), small_norm)


def _squares(grad: Tensor) -> tuple[Tensor, Tensor]:
    grad = grad.float()
    large = grad.abs() > BIG
    return (
        torch.where(large, 0.0, grad).square().sum(),
        torch.where(large, grad * SHRINK, 0.0).square().sum(),
    )
