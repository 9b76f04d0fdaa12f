"""From a task to terms and to an objective: what the compiled step is compiled from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from numbers import Number
from typing import Any

from torch import Tensor, nn

from fkd._objective.models import frozen, trainable
from fkd._objective.objective import Objective
from fkd._objective.terms import Term, term
from fkd._refs.derived import call, module
from fkd._refs.refs import Ref, ref

from ._adapt import Adapted, Layout, joined, mask_of
from ._config import MASKED, terms_from_config
from ._task import Task
from ._teachers import form_for, is_one

logger = logging.getLogger(__name__)

Layouts = Mapping[str, Layout]
Weight = Callable[[int], Callable[[int], float]]
"""`weight(place)(step)`: the weight that the config has at a place of its list at a step."""


class CannotCompile(RuntimeError):
    """The step cannot be one graph of fkd's, though that package could take it."""


def terms_of(task: Task, layouts: Layouts, weight: Weight) -> dict[str, Term]:
    """The terms of a task, for inputs with these constants."""
    fields = ref("batch")
    inputs = {name: joined(layout, fields[name]) for name, layout in layouts.items()}
    if task.config is None:
        return {"loss": _users_own(task, inputs)}
    masked = {item.teacher_name for item in task.items if item.loss in MASKED}
    terms = terms_from_config(
        task.config.distill_config,
        losses=task.config.own_losses,
        teachers=list(task.teachers),
        inputs=inputs,
        masks={n: mask_of(task.teachers[n], layouts[n], fields[n]) for n in masked},
        whole_batch=fields["whole"],
    )
    return {
        name: replace(t, weight=weight(i)) if isinstance(t.weight, Number) else t
        for i, (name, t) in enumerate(terms.items())
    }


def _users_own(task: Task, inputs: Mapping[str, Ref]) -> Term:
    """The loss model of the user's own, as one term."""

    def together(refs: Mapping[str, Ref]) -> Ref:
        """One ref for all teachers, in the form in which the user has them."""
        if is_one(task.teacher_model):
            return refs["teacher"]
        return call(form_for(task.teacher_model), *(refs[name] for name in task.teachers))

    outputs = {name: ref(name) for name in task.teachers}
    args = (together(outputs), ref("student"), together(inputs), inputs["student"])
    if task.trained is None:
        return term(_itself, call(task.loss_model, *args))
    return term(_itself, module("loss_model")(*args))


def _itself(value: Tensor) -> Tensor:
    return value


def objective_of(
    task: Task,
    layouts: Layouts,
    weight: Weight,
    *,
    as_tuple: Mapping[str, bool],
    leaves: Collection[Tensor],
) -> Objective:
    """The task as an objective.

    Args:
      task: models and losses.
      layouts: the constants of the models' inputs.
      weight: reads the config.
      as_tuple: which models' outputs are handed to their adaptors as plain tuples.
      leaves: the parameters on which the loss depends.

    Raises:
      CannotCompile: it depends on some that belong to none of the models that are trained.
    """
    _refuse_outsiders(task, leaves)
    wrapped = {
        name: Adapted(model, task.picking(name), as_tuple=as_tuple[name])
        for name, model in task.models.items()
    }

    def inputs(name: str) -> Callable[[Any], Any]:
        return lambda fields: (layouts[name].join(fields[name]),)

    student, loss_model = wrapped["student"], task.trained
    unused = _unused(student, leaves)
    if unused:
        names = [name.removeprefix("model.") for name in unused]
        logger.info("no loss depends on these parameters, which stay as they are: %s", names)
    models = {name: frozen(wrapped[name], inputs=inputs(name)) for name in task.teachers}
    models["student"] = trainable(student, inputs=inputs("student"), unused=unused)
    if loss_model is not None:
        models["loss_model"] = trainable(loss_model, unused=_unused(loss_model, leaves))
    return Objective(terms_of(task, layouts, weight), **models)


def _unused(model: nn.Module, leaves: Collection[Tensor]) -> list[str]:
    """The parameters on which the loss does not depend; none of them, if it depends on nothing."""
    reached = {id(p) for p in leaves}
    return [n for n, p in model.named_parameters() if reached and id(p) not in reached]


def _refuse_outsiders(task: Task, leaves: Collection[Tensor]) -> None:
    trained = [m for m in (task.student, task.trained) if m is not None]
    inside = {id(p) for model in trained for p in model.parameters()}
    outside = [tuple(p.shape) for p in leaves if id(p) not in inside]
    if outside:
        raise CannotCompile(
            f"the loss depends on parameters of shapes {outside} that belong neither to the "
            "student nor to the loss model (a layer in an output adaptor, say). A layer that "
            "is a submodule of the student can be compiled."
        )
