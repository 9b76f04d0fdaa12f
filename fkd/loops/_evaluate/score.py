"""Forward passes without gradients: what the models of an objective say of every batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch

from fkd._mean import Mean
from fkd._objective.objective import Objective
from fkd._objective.terms import Term, term
from fkd._refs.derived import Call, as_ref
from fkd._refs.refs import Context, node, roots, walk
from fkd._trees import map_tensors
from fkd._types import Batch, Scalars

from .._compile import compiled, unlimited_recompilation
from .._data.epochs import Loader, epoch_batches
from .._data.prefetch import to_device
from .._random import fold_in, seeded
from .._state import State, device_of

Read = Callable[[Context, Scalars, Mapping[str, Any]], Any]
"""`read(context, scalars, loss state)`: what to keep of a batch."""


class Forward:
    """What `read` says of each batch, as one compiled function: eval mode, no gradients."""

    def __init__(
        self,
        objective: Objective,
        read: Read,
        *,
        compile: Mapping[str, Any] | None,
        autocast: torch.dtype | None,
    ) -> None:
        self.objective = objective.evaluating()
        self.read, self.autocast = read, autocast
        self._forward = compiled(self._of_a_batch, compile)

    def __call__(self, state: State, batches: Iterable[Batch]) -> Iterator[Any]:
        """One result for each batch, on the device. Nothing global is changed in between."""
        device = device_of(state.trainable)
        scalars, copy = self.objective.scalars(state.step, device), to_device(device)
        for index, batch in enumerate(batches):
            seed = fold_in(fold_in(state.seed, -1), index)
            with torch.no_grad(), seeded(seed, device), unlimited_recompilation():
                found = self._forward(
                    state.trainable,
                    state.frozen,
                    state.buffers,
                    state.loss_state,
                    scalars,
                    copy(batch),
                )
            yield found

    def _of_a_batch(
        self, trainable: Any, frozen: Any, buffers: Any, loss_state: Any, scalars: Any, batch: Any
    ) -> Any:
        ctx, _ = self.objective.context(trainable, frozen, buffers, batch, autocast=self.autocast)
        return self.read(ctx, scalars, loss_state)


def score(
    objective: Objective,
    state: State,
    loader: Loader,
    values: Mapping[str, Any],
    *,
    compile: bool | Mapping[str, Any] = False,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> Iterator[dict[str, Any]]:
    """Values of every batch, on the CPU: a teacher's logits to keep, losses to filter by.

        for made in score(objective, state, loader, {"kl": objective.terms["kd"]}):
            worst = made["kl"].argmax()

    Eval mode, no gradients, batches in the order of epoch -1 (that of `evaluate`). Only the
    models that the values read are run (all of them for a plain function of the context);
    compiled, only those layers of them.

    Args:
      objective: as trained.
      state: the parameters; not changed.
      loader: batches, as for `fit`.
      values: by name, a ref (`teacher.logits`, `fkd.call(kl, student.logits, teacher.logits)`),
        a function of the context, or a term, which stands for the values of its loss before
        they are averaged: one for each position, at the knobs of `state.step`, without its
        weight.
      compile: as in `train_step`.
      precision: "bf16" runs the models under autocast.

    Returns:
      An iterator over `{name: value}`, one for each batch. A batch is drawn and computed when
      it is asked for.

    Raises:
      ValueError: no values, at once; an ObjectiveError for refs that do not fit the models.

    Example:
      >>> import fkd.loops
      >>> goal = Objective(
      ...     {"kd": term(kl, student.logits, teacher.logits)},
      ...     student=trainable(torch.nn.Linear(4, 3)), teacher=frozen(torch.nn.Linear(4, 3)),
      ... )
      >>> state = fkd.loops.train_step(goal, torch.optim.SGD, compile=False).init()
      >>> made = fkd.loops.score(goal, state, [torch.randn(2, 4)], {"kl": goal.terms["kd"]})
      >>> [one["kl"].shape for one in made]
      [torch.Size([2])]
    """
    if not values:
        raise ValueError("score: values is empty. Give at least one: {'logits': teacher.logits}.")
    options = None if compile is False else {} if compile is True else dict(compile)
    autocast = torch.bfloat16 if precision == "bf16" else None
    reader = _Values(objective, values)
    forward = Forward(reader.objective, reader, compile=options, autocast=autocast)
    found = forward(state, epoch_batches(loader, state.seed, -1))
    return (map_tensors(lambda x: x.detach().cpu(), made) for made in found)


class _Values:
    """What `score` keeps of a context."""

    def __init__(self, objective: Objective, values: Mapping[str, Any]) -> None:
        self.terms = {n: replace(v, weight=1.0) for n, v in values.items() if isinstance(v, Term)}
        self.names = {
            n: name for n in self.terms for name, t in objective.terms.items() if t is values[n]
        }
        self.refs = {n: as_ref(v) for n, v in values.items() if n not in self.terms}
        # Terms, since what an objective computes is what its terms read.
        terms = {**self.terms, **{n: term(_nothing, ref) for n, ref in self.refs.items()}}
        self.objective = Objective(terms, **_models(objective, terms.values()))

    def __call__(
        self, ctx: Context, scalars: Scalars, loss_state: Mapping[str, Any]
    ) -> dict[str, Any]:
        objective = self.objective
        found = objective.plan.compute(ctx)
        kept = {n: found[objective.plan.place[ref]] for n, ref in self.refs.items()}
        for name, own in self.terms.items():
            state = loss_state.get(self.names.get(name, ""), own.state)
            kept[name] = objective.bound[name](found, scalars, state).result
        return kept


def _models(objective: Objective, terms: Iterable[Term]) -> dict[str, Any]:
    """The models without adapters that only other terms call: a function of the context would
    have them run by themselves."""
    read = [ref for t in terms for ref in t.refs]
    named = {name for ref in read for part in walk(ref) for name in roots(part) or ()}
    called = {r.name for r in map(node, objective.refs) if isinstance(r, Call) and r.fn is None}
    spare = called - named - set(objective.runs)
    return {n: m for n, m in objective.models.items() if n not in spare}


def _nothing(value: Any) -> Mean:
    """Has a ref computed without reducing it."""
    del value
    return Mean(torch.zeros(()), torch.zeros(()))
