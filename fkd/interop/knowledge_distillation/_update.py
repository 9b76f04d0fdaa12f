"""The gradient of one step, in one compiled graph or eagerly, as that package computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from fkd.interop.modules import Bound, bind

from ._adapt import adapted_by, call_with, form_of
from ._bind import Layouts, objective_of, terms_of
from ._config import check_outputs
from ._inputs import Inputs
from ._plain import PlainTerms, leaves
from ._task import Task
from ._teachers import form_for, output_of, still

T = TypeVar("T")

MOST_VARIANTS = 8


class Update:
    """The loss of a batch and its gradient, for one task.

    Args:
      task: what is distilled; may be replaced by one that differs in the weights only.
      first: the inputs of the first batch, on which models and adaptors are tried.

    Raises:
      ValueError: the config names a layer or output that the adaptors do not give.
    """

    def __init__(self, task: Task, first: Inputs) -> None:
        self.task = task
        self._as_tuple = _tried(task, first)
        self._compiled: Variants[Bound] = Variants()
        self._eager: Variants[PlainTerms] = Variants()

    def compiled(self, inputs: Inputs, count: int, options: bool | Mapping[str, Any]) -> Tensor:
        """The loss of a batch, by a compiled graph that adds the gradient to `.grad`.

        Raises:
          CannotCompile, ObjectiveError: what fkd finds that it cannot compile.
          CompileError: what torch cannot compile.
          ValueError: constants of the inputs change with every batch.
        """
        bound = self._compiled.known(inputs.layouts)
        if bound is None:
            self._compiled.refuse_more(inputs.layouts)
            with still([*self.task.models.values()], self.task.student):
                reached = leaves(self._loss(inputs, 0))
            objective = objective_of(
                self.task, inputs.layouts, self._weight, as_tuple=self._as_tuple, leaves=reached
            )
            bound = self._compiled.add(inputs.layouts, bind(objective, compile=options))
        return bound.backward(inputs.fields, count)[0]

    def eager(self, inputs: Inputs, count: int) -> Tensor:
        """The same without compiling: whatever Python the user's functions hold works here."""
        loss = self._loss(inputs, count)
        loss.backward()
        return loss.detach()

    def _loss(self, inputs: Inputs, count: int) -> Tensor:
        task = self.task
        with torch.no_grad():
            outputs = {n: call_with(m, inputs.calls[n]) for n, m in task.teachers.items()}
        outputs["student"] = call_with(task.student, inputs.calls["student"])
        if task.config is None:
            of_teachers, calls = ([x[n] for n in task.teachers] for x in (outputs, inputs.calls))
            form = form_for(task.teacher_model)
            student = outputs["student"], inputs.calls["student"]
            return task.loss_model(form(*of_teachers), student[0], form(*calls), student[1]).mean()
        adapted = {
            n: adapted_by(task.picking(n), output, as_tuple=self._as_tuple[n])
            for n, output in outputs.items()
        }
        return self._terms(inputs.layouts).total(adapted, inputs.fields, count)

    def _terms(self, layouts: Layouts) -> PlainTerms:
        known = self._eager.known(layouts)
        if known is None:
            self._eager = Variants()  # only the last: making them costs nothing
            known = self._eager.add(layouts, PlainTerms(terms_of(self.task, layouts, self._weight)))
        return known

    def _weight(self, place: int) -> Callable[[int], float]:
        """A weight as it is in the config at the time of a step."""
        return lambda step: self.task.items[place].weight


class Variants(Generic[T]):
    """One thing for each set of constants that the inputs had; there is one set, as a rule."""

    def __init__(self) -> None:
        self._all: list[tuple[Layouts, T]] = []

    def known(self, layouts: Layouts) -> T | None:
        """What was added for these constants."""
        for other, variant in self._all:
            if all(layouts[name].same(other[name]) for name in layouts):
                return variant
        return None

    def add(self, layouts: Layouts, variant: T) -> T:
        """Keep a variant for the next inputs with these constants."""
        self._all.append((layouts, variant))
        return variant

    def refuse_more(self, layouts: Layouts) -> None:
        """Raise if there are as many as can be meant."""
        if len(self._all) < MOST_VARIANTS:
            return
        constants = {name: sorted(layout.constants) for name, layout in layouts.items()}
        raise ValueError(
            f"train_data_adaptor gave fields that are not tensors, {constants}, with other "
            "values in every batch; a compiled step is compiled for each. Make them tensors, "
            "leave them out, or pass compile=False."
        )


def _tried(task: Task, first: Inputs) -> dict[str, bool]:
    """Which outputs the adaptors take as plain tuples, after a look at what they give."""
    as_tuple: dict[str, bool] = {}
    adapted: dict[str, Any] = {}
    for name, adaptor in task.adaptors().items():
        output = output_of(task.models[name], first.calls[name])
        whose = "student" if name == "student" else "teacher"
        as_tuple[name] = adaptor is not None and form_of(adaptor, output, whose=whose)
        adapted[name] = adapted_by(adaptor, output, as_tuple=as_tuple[name])
    if task.items:
        check_outputs(task.items, adapted)
    return as_tuple
