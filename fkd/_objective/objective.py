"""An objective: terms over a program, as one pure function of parts and batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._base.errors import ObjectiveError, expect
from .._base.mean import Mean
from .._base.trees import map_tensors, sizes
from .._base.types import Batch, Scalars
from .._blocks.sharing import Sharing
from .._refs.refs import Ref
from .evaluation import BoundTerms, Evaluation
from .knobs import decay_knobs, knob_values
from .models import Model
from .plan import Given, Plan
from .problems import read_problems, static_problems
from .program import Parts, Program, Rewrite, make_program
from .terms import Graph, Term, flatten


class Aux(NamedTuple):
    """What an objective gives besides the loss.

    Attributes:
      terms: the mean of each term (and metric), before its weight.
      weights: the weight that each term had in the total.
      buffers: the buffers after the forward passes.
      loss_state: the state of each stateful term after this batch.
    """

    terms: dict[str, Mean]
    weights: dict[str, Tensor]
    buffers: dict[str, dict[str, Tensor]]
    loss_state: dict[str, object]

    def __repr__(self) -> str:
        states = f"buffers={sizes(self.buffers)}, loss_state={sizes(self.loss_state)}"
        return f"Aux(terms={self.terms}, weights={self.weights}, {states})"


class Objective:
    """Terms over named models, as the pure function that a step differentiates.

        loss, aux = objective(parts, batch, step)

    Args:
      terms: a term, or nested dicts (or lists) of terms; the keys are the names in logs.
      models: `trainable(module)`, `frozen(module)` or `ema(name)` for every name that the
        terms use. Any names, any number.

    The objective never changes, and neither do the modules it is given. Mistakes are reported
    together by `fkd.check(objective, batch)`, and by the first use.

    Example:
      >>> net = torch.nn.Linear(4, 3)
      >>> objective = Objective(
      ...     {"kd": term(kl, student.logits, teacher.logits)},
      ...     student=trainable(net), teacher=frozen(torch.nn.Linear(4, 3)),
      ... )
      >>> loss, aux = objective(objective.init(), torch.randn(2, 4))
      >>> loss.shape, sorted(aux.terms)
      (torch.Size([]), ['kd'])
    """

    def __init__(self, terms: Graph, /, **models: Model) -> None:
        self.terms: Mapping[str, Term] = flatten(terms)
        self.problems: tuple[str, ...] = ()
        plan = Plan(ref for term in self.terms.values() for ref in term.refs)
        self.bound = BoundTerms(self.terms, plan.place)
        self.knobs = {**self.bound.knobs, **decay_knobs(models)}
        problems = static_problems(self.terms, models, plan.refs)
        try:
            if problems:
                raise ObjectiveError(problems)
            self.program = make_program(plan, models)
        except ObjectiveError as error:
            self.problems = error.problems
            self.program = Program(plan, models, {})

    @property
    def models(self) -> Mapping[str, Model]:
        """The models by name, as they were given."""
        return self.program.models

    @property
    def weighted(self) -> list[str]:
        """The terms that are part of the total; the others are metrics."""
        return [name for name, term in self.terms.items() if term.weight is not None]

    def evaluating(self) -> Objective:
        """The same objective with every model in eval mode (no dropout, running statistics).

        Raises:
          ObjectiveError: the objective has problems, or a module cannot be copied.
        """
        self.raise_problems()
        return self._over(self.program.evaluating())

    def without(self, known: Iterable[Ref]) -> Objective:
        """The same objective where the values of some refs come with the call.

            loss, aux = objective.without([teacher.logits])(parts, batch, given={...})

        Models that nothing else reads are neither run nor part of `init()`.

        Args:
          known: refs that terms read, directly or through other refs.

        Raises:
          ValueError: a ref that nothing reads.
        """
        self.raise_problems()
        return self._over(self.program.without(known))

    def reading(self, terms: Mapping[str, Term], refs: Iterable[Ref] = ()) -> Program:
        """A program of the same models, in eval mode, for other terms and refs.

        Raises:
          ObjectiveError: a term or ref does not fit the models.
        """
        self.raise_problems()
        wanted = [*(ref for term in terms.values() for ref in term.refs), *refs]
        problems = read_problems(terms, self.models, Plan(wanted).refs)
        if problems:
            raise ObjectiveError(problems)
        return self.program.reading(wanted)

    def rewritten(self, rewrite: Rewrite) -> Objective:
        """The same objective, whose models run as `rewrite` says."""
        self.raise_problems()
        before = self.program
        return self._over(
            make_program(before.plan, before.models, before.adapters, rewrite=rewrite)
        )

    def sharing(self, sharing: Sharing) -> Objective:
        """The same objective, whose models' equal blocks are compiled once."""
        self.raise_problems()
        return self._over(self.program.sharing(sharing))

    def _over(self, program: Program) -> Objective:
        other = copy.copy(self)
        other.program = program
        other.bound = BoundTerms(self.terms, program.plan.place)
        other.knobs = {**other.bound.knobs, **decay_knobs(program.models)}
        return other

    def init(self) -> Parts:
        """The initial parameters, buffers and loss state. Frozen parameters, of frozen models
        and of others, are shared with the module; all else is a copy."""
        values = self.program.values_of
        return self.parts(lambda x: x.detach().clone(), lambda x: x.detach(), values)

    def parts(
        self,
        copied: Callable[[Tensor], Tensor],
        shared: Callable[[Tensor], Tensor],
        absent: Callable[[str, str, Tensor], Tensor] | None = None,
    ) -> Parts:
        """The tensors of the models and of the losses' states; see `Program.parts`."""
        self.raise_problems()
        states = {n: term.state for n, term in self.terms.items() if term.state is not None}
        parts = self.program.parts(copied, shared, absent)
        return parts._replace(loss_state=map_tensors(copied, states))

    def scalars(self, step: int, device: torch.device | str | None = None) -> dict[str, Tensor]:
        """The moving knobs at a step, as 0-d float32 tensors on `device`.

        They travel in one copy that the host does not wait for.
        """
        return knob_values(self.knobs, step, device)

    def __call__(
        self,
        parts: Parts,
        batch: Batch,
        step: int = 0,
        *,
        scalars: Scalars | None = None,
        counts: Mapping[str, Tensor] | None = None,
        autocast: torch.dtype | None = None,
        given: Given | None = None,
    ) -> tuple[Tensor, Aux]:
        """The weighted total of the terms on a batch. Pure.

        Args:
          parts: parameters, buffers and loss state, as `init()` gives them.
          batch: what the data loader yields.
          step: evaluates the schedules, unless `scalars` are given.
          scalars: the moving knobs, from `scalars(step)`. A compiled caller passes them, so
            that a new step is not a new graph.
          counts: what each term's total is divided by, instead of this batch's own count:
            the merged counts, when this batch is a part of a larger one.
          autocast: dtype in which models (not losses) run their matrix products.
          given: values of refs that are not computed again; see `without`. A compiled function
            takes them by their place, `objective.program.plan.place[ref]`.

        Returns:
          `[]`, the loss, and an `Aux`.
        """
        self.raise_problems()
        if not torch.compiler.is_compiling() and not hasattr(parts, "trainable"):
            fix = "Call objective(parts, batch), with parts = objective.init()."
            expect("objective", "parts", parts, Parts, "the parts of the models", fix)
        scalars = self.scalars(step) if scalars is None else scalars
        forward = self.program.context(parts, batch, autocast=autocast)
        values = self.program.values(forward.context, given)
        evaluation = self.evaluate(values, scalars, parts.loss_state, autocast=autocast)
        loss = self.total(evaluation, counts)
        means, weights, loss_state = evaluation
        return loss, Aux(means, weights, forward.buffers, loss_state)

    def evaluate(
        self,
        values: Sequence[Any],
        scalars: Scalars,
        loss_state: Mapping[str, object],
        *,
        autocast: torch.dtype | None = None,
    ) -> Evaluation:
        """Every term on the values of the program; see `BoundTerms.evaluate`."""
        return self.bound.evaluate(values, scalars, loss_state, autocast=autocast)

    def total(self, evaluation: Evaluation, counts: Mapping[str, Tensor] | None = None) -> Tensor:
        """`[]`, the sum over terms of weight * total / count; see `BoundTerms.total`."""
        return self.bound.total(evaluation, counts)

    def raise_problems(self) -> None:
        """Raise what is wrong with the objective, if anything is."""
        if self.problems:
            raise ObjectiveError(self.problems)

    def __iter__(self) -> Iterator[str]:
        return iter(self.terms)

    def __repr__(self) -> str:
        models = [f"    {n}={m!r}," for n, m in self.models.items()]
        terms = [f"        {n!r}: {t!r}," for n, t in self.terms.items()]
        return "\n".join(["Objective(", "    {", *terms, "    },", *models, ")"])
