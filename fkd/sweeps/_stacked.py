"""All members in one computation: their states are stacked, and `torch.func.vmap` runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fkd._base.trees import map_tensors, merged, stacked
from fkd._base.types import Scalars, TensorBatch
from fkd._objective.evaluation import contributions
from fkd._objective.models import modules_of
from fkd._objective.objective import Objective
from fkd._objective.program import Parts
from fkd.loops._base.compile import CompileOptions, compiled
from fkd.loops._step.gradient import Gradients, Total, of_group
from fkd.loops._step.graphs import Computed, Graphs

IN_TURN = "Leave out stacked=True: the members then run in turn."


class Divided(NamedTuple):
    """The parts of all members.

    Attributes:
      shared: frozen parameters and buffers that all have in common.
      own: of each member, the rest.
    """

    shared: Parts
    own: list[Parts]


class Stacked:
    """What a step of all members computes, as one function.

    The forward passes are one, over stacked parameters; the gradient of the sum of the losses has
    the gradient of each member, since none depends on another's parameters.

    Args:
      objective: of all, without their teacher.
      graphs: what a member computes after the gradient.
      options: for `torch.compile`; None does not compile.
      one_seed: whether all members draw the same random numbers.
    """

    def __init__(
        self,
        objective: Objective,
        graphs: Graphs,
        options: CompileOptions | None,
        *,
        one_seed: bool,
    ) -> None:
        self.objective, self.graphs = objective, graphs
        self.randomness = "same" if one_seed else "error"
        self.whole = compiled(self._whole, options, modules_of(objective.models))

    def _whole(
        self, divided: Divided, scalars: Sequence[Scalars], batch: TensorBatch
    ) -> list[Computed]:
        """What `Graphs.whole` gives of every member."""
        with torch.enable_grad():
            parts, knobs = stacked(divided.own), stacked(scalars)
            loss, means, weights, buffers, loss_state = self._vmap(self._member(divided, batch))(
                parts, knobs
            )
            (passes,) = self.graphs.passes
            every = [one.terms for one in passes] == [tuple(weights)]
            shares = {} if every else contributions(means, weights)
            grads = of_group(Total(loss.sum(), shares), passes, parts.trainable)
        aux = map_tensors(torch.detach, (means, weights, buffers, loss_state))
        new = Gradients(grads, loss.detach(), *aux)
        computed = self._vmap(self._finished)(new, map_tensors(torch.detach, parts))
        return [Computed(*_unstacked(computed, k)) for k in range(len(scalars))]

    def _member(self, divided: Divided, batch: TensorBatch) -> Callable[..., Any]:
        """The forward pass of one member, as a function of what it has of its own."""
        kinds = {name: model.kind for name, model in self.objective.models.items()}

        def run(own: Parts, knobs: Scalars) -> Any:
            parts = _with_shared(divided.shared, own)
            call: Any = self.objective
            loss, aux = call(parts, batch, scalars=knobs, autocast=self.graphs.autocast)
            means, weights, buffers, loss_state = aux
            moved = {n: buffers[n] for n in own.buffers if kinds[n] == "trainable"}
            return loss, means, weights, moved, loss_state

        return run

    def _finished(self, new: Gradients, parts: Parts) -> tuple[Any, ...]:
        grads, buffers, loss_state, _, measured, finite, left_out, _ = self.graphs.finished(
            new, parts, None
        )
        return grads, buffers, loss_state, measured, finite, left_out

    def _vmap(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        return torch.func.vmap(fn, randomness=self.randomness)

    def attempt(self, divided: Divided, scalars: Sequence[Scalars], batch: TensorBatch) -> None:
        """Run the forward passes once, without a gradient, before anything is compiled.

        Raises:
          ValueError: vmap cannot run them; says why, as far as that is known.
        """
        try:
            with torch.no_grad():
                self._vmap(self._member(divided, batch))(stacked(divided.own), stacked(scalars))
        except Exception as error:
            raise ValueError(
                f"sweep: stacked=True, and torch.func.vmap cannot run the members as one: "
                f"{_why(error)} {IN_TURN}"
            ) from error


def _why(error: Exception) -> str:
    """What stands in the way."""
    said = str(error)
    first = said.strip().partition("\n")[0].rstrip(".")
    if "randomness" in said:
        return (
            "the members have seeds of their own, and a model or a loss draws random numbers "
            "(dropout, say), which stacked members draw in common. Give the members no seed."
        )
    if ".item()" in said or "data-dependent" in said:
        return f"something decides by the values of a tensor ({first})."
    if "autograd.Function" in said:
        return f"a loss has a backward pass of its own, written for one member ({first})."
    if "in-place" in said or "inplace" in said:
        return f"a module or a loss changes a tensor in place that all have in common ({first})."
    return f"{type(error).__name__}: {first}."


def divided(parts: Sequence[Parts]) -> Divided:
    """The parts of members, of which those in the same memory are there once."""
    shared = Parts({}, {}, {}, {})
    own = [Parts(p.trainable, {}, {}, p.loss_state) for p in parts]
    for field in ("frozen", "buffers"):
        trees: list[Mapping[str, Mapping[str, Tensor]]] = [getattr(p, field) for p in parts]
        for model, tensors in trees[0].items():
            for name, first in tensors.items():
                every = [tree[model][name] for tree in trees]
                if all(x is first or x.data_ptr() == first.data_ptr() for x in every):
                    getattr(shared, field).setdefault(model, {})[name] = first
                else:
                    for one, x in zip(own, every, strict=True):
                        getattr(one, field).setdefault(model, {})[name] = x
    return Divided(shared, own)


def _with_shared(shared: Parts, own: Parts) -> Parts:
    frozen, buffers = merged(shared.frozen, own.frozen), merged(shared.buffers, own.buffers)
    return Parts(own.trainable, frozen, buffers, own.loss_state)


def _unstacked(computed: tuple[Any, ...], k: int) -> tuple[Any, ...]:
    """What is computed of one member."""
    one = map_tensors(lambda x: x[k], computed)
    grads, buffers, loss_state, measured, finite, left_out = one
    # Kept from step to step, and so in memory of its own.
    loss_state = map_tensors(torch.clone, loss_state)
    return grads, buffers, loss_state, None, measured, finite, left_out
