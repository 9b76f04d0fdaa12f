"""The distiller: one update and one call of the evaluator for every batch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Number
from typing import Any

import torch
from torch import Tensor, nn

from fkd._errors import ObjectiveError
from fkd._objective.apply import frozen, trainable
from fkd._objective.objective import Objective
from fkd._objective.terms import Term, term
from fkd._refs.derived import call, module
from fkd._refs.refs import Ref, ref
from fkd.interop.modules import Bound, bind
from fkd.loops._data.batch import normalised

from ._adapt import (
    Adapted,
    Layout,
    adapted_by,
    call_with,
    form_of,
    joined,
    mask_of,
    picked,
    plain_tuple,
    split,
)
from ._config import (
    MASKED,
    Item,
    check_outputs,
    parse,
    same_items,
    terms_from_config,
    wanted_of,
)
from ._given import adaptors_of, form_for, inputs_of, is_one, named_teachers, output_of, still
from ._loss_model import MultiLayerBasedDistillationLoss
from ._plain import PlainTerms, leaves

logger = logging.getLogger(__name__)

DataAdaptor = Callable[[Any, Any], Any]

_MOST_VARIANTS = 8


class KnowledgeDistiller:
    """Distils teachers into a student that learns in place.

    Forward passes, losses and gradient of a step are one compiled graph; the optimizer and the
    evaluator are the user's own. What no one graph can hold (a loss that looks at values, a
    trained layer that belongs neither to the student nor to the loss model, embeddings shared
    with the teacher) runs eagerly, as in that package, with a warning.

    The config is read again at every step, so that weights may be changed on the way. Where that
    package goes on in whatever mode an evaluator leaves the student in, this goes on in train
    mode; and shapes that differ are an error, where that package would broadcast them.

    Args:
      teacher_model: the teacher; or several, as a list or a dict by name. With several, an item
        of the config says which by `"teacher"`: a name, or a place in the list.
      student_model: the student; it is updated in place.
      train_dataloader: yields batches; it is iterated once an epoch.
      dev_dataloader: handed to the evaluator.
      device: where to train; the models are moved there.
      loss_model: a `MultiLayerBasedDistillationLoss`, or any module or function
        `(teacher_output, student_output, teacher_input, student_input) -> loss`.
      optimizer: any optimizer of the student's parameters.
      evaluator: an object with `evaluate(teacher_model, student_model, dev_dataloader,
        dev_data_adaptor, epoch, step, loss)`, called after every update; or None.
      num_epoch: how often to go through the data.
      train_data_adaptor: `(device, batch) -> (teacher_input, student_input)`, each a dict of
        keyword arguments or a tuple of arguments. With several teachers the first may be a list
        or a dict with one input for each.
      dev_data_adaptor: handed to the evaluator.
      compile: True, False, or options for `torch.compile`.
    """

    def __init__(
        self,
        teacher_model: nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module],
        student_model: nn.Module,
        train_dataloader: Iterable[Any],
        dev_dataloader: Any,
        device: torch.device | str | None,
        loss_model: Any,
        optimizer: Any,
        evaluator: Any,
        num_epoch: int,
        train_data_adaptor: DataAdaptor,
        dev_data_adaptor: Any = None,
        *,
        compile: bool | Mapping[str, Any] = True,
    ) -> None:
        self.teacher_model = teacher_model
        self.student_model = student_model.to(device)
        self.train_dataloader = train_dataloader
        self.dev_dataloader = dev_dataloader
        self.device = device
        self.loss_model = loss_model.to(device) if isinstance(loss_model, nn.Module) else loss_model
        self.optimizer = optimizer
        self.evaluator = evaluator
        self.num_epoch = num_epoch
        self.train_data_adaptor = train_data_adaptor
        self.dev_data_adaptor = dev_data_adaptor
        self.compile = compile
        self._teachers = named_teachers(teacher_model)
        for teacher in self._teachers.values():
            teacher.to(device)
        self._items = self._parse()
        self._bound: list[tuple[dict[str, Layout], Bound]] = []
        self._plain: list[tuple[dict[str, Layout], PlainTerms]] = []
        self._as_tuple: dict[str, bool] = {}

    def distillate(self) -> None:
        """Train for `num_epoch` epochs.

        Raises:
          ValueError: the config names a layer or output that the adaptors do not give (before
            the first update), or an adaptor gives something else than it should.
        """
        self._items = self._parse()
        self._bound, self._plain, self._as_tuple = [], [], {}
        for teacher in self._teachers.values():
            teacher.eval()
        count = 0
        for epoch in range(self.num_epoch):
            for step, batch in enumerate(self.train_dataloader):
                loss = self._update(batch, count)
                count += 1
                if self.evaluator is not None:
                    self.evaluator.evaluate(
                        self.teacher_model,
                        self.student_model,
                        self.dev_dataloader,
                        self.dev_data_adaptor,
                        epoch,
                        step,
                        loss,
                    )

    def _update(self, batch: Any, count: int) -> Tensor:
        if not self.student_model.training:
            self.student_model.train()
        self._refresh()
        given = inputs_of(self.train_data_adaptor(self.device, batch), list(self._teachers))
        tensors = {name: split(value) for name, value in given.items()}
        layouts = {name: layout for name, (_, layout) in tensors.items()}
        fields: dict[str, Any] = {name: found for name, (found, _) in tensors.items()}
        if any(item.label is not None for item in self._items):
            device = next((p.device for p in self.student_model.parameters()), None)
            fields["whole"] = normalised(batch, device)
        if not self._as_tuple:
            self._look(given)
        loss = self._differentiated(layouts, given, fields, count)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def _refresh(self) -> None:
        """Read the config again: what the user has changed since the last step holds from now."""
        items = self._parse()
        if not same_items(items, self._items):
            self._bound, self._plain, self._as_tuple = [], [], {}
        self._items = items

    def _look(self, given: Any) -> None:
        """See what the models and adaptors give, before the first update."""
        adapted: dict[str, Any] = {}
        for name, adaptor in self._adaptors().items():
            output = output_of(self._models[name], given[name])
            whose = "student" if name == "student" else "teacher"
            as_tuple = adaptor is not None and form_of(adaptor, output, whose=whose)
            self._as_tuple[name] = as_tuple
            adapted[name] = adapted_by(adaptor, output, as_tuple=as_tuple)
        if self._items:
            check_outputs(self._items, adapted)

    def _differentiated(self, layouts: Any, given: Any, fields: Any, count: int) -> Tensor:
        """The loss, with the gradient in `.grad`."""
        if self.compile is False:
            return self._plainly(layouts, given, fields, count)
        bound = self._bind(layouts, given, fields)
        try:
            if isinstance(bound, str):  # why there is none
                raise RuntimeError(bound)
            return bound.backward(fields, count)[0]
        except Exception as error:
            try:
                loss = self._plainly(layouts, given, fields, count)
            except Exception:
                if isinstance(error, ObjectiveError):  # lists all that is wrong
                    raise error from None
                raise
            self._give_up_compiling(error)
            return loss

    def _plainly(self, layouts: Any, given: Any, fields: Any, count: int) -> Tensor:
        loss = self._loss(layouts, given, fields, count)
        loss.backward()
        return loss.detach()

    def _loss(self, layouts: Any, given: Any, fields: Any, count: int) -> Tensor:
        """The loss as that package computes it."""
        with torch.no_grad():
            outputs = {n: call_with(m, given[n]) for n, m in self._teachers.items()}
        outputs["student"] = call_with(self.student_model, given["student"])
        if self._config is None:
            of_teacher, inputs = ([x[n] for n in self._teachers] for x in (outputs, given))
            form = form_for(self.teacher_model)
            return self.loss_model(
                form(*of_teacher), outputs["student"], form(*inputs), given["student"]
            ).mean()
        adaptors = self._adaptors()
        adapted = {
            n: picked(adaptors[n], wanted_of(self._items, n))(
                plain_tuple(output) if self._as_tuple[n] else output
            )
            for n, output in outputs.items()
        }
        return self._total(layouts).total(adapted, fields, count)

    def _total(self, layouts: dict[str, Layout]) -> PlainTerms:
        """The terms, for inputs with these constants."""
        for known, total in self._plain:
            if all(layouts[name].same(known[name]) for name in layouts):
                return total
        total = PlainTerms(self._terms(layouts))
        self._plain = [(layouts, total)]
        return total

    def _give_up_compiling(self, error: Exception) -> None:
        warnings.warn(
            "KnowledgeDistiller: the step cannot be compiled, and runs eagerly from here on. Pass "
            "compile=False, or change what the compiler stumbles over: " + str(error).strip(),
            stacklevel=5,
        )
        self.compile = False
        self._bound.clear()

    def _bind(self, layouts: dict[str, Layout], given: Any, fields: Any) -> Bound | str:
        """The objective for inputs with these constants; there is one, as a rule. Or why there
        can be none."""
        for known, bound in self._bound:
            if all(layouts[name].same(known[name]) for name in layouts):
                return bound
        if len(self._bound) == _MOST_VARIANTS:
            constants = {name: sorted(x.constants) for name, x in layouts.items()}
            raise ValueError(
                f"train_data_adaptor gave fields that are no tensors, {constants}, with other "
                "values in every batch; a compiled step is compiled for each. Make them tensors, "
                "leave them out, or pass compile=False."
            )
        try:
            bound = bind(self._objective(layouts, given, fields), compile=self.compile)
        except Exception as error:
            return str(error)
        self._bound.append((layouts, bound))
        return bound

    def _objective(self, layouts: dict[str, Layout], given: Any, fields: Any) -> Objective:
        reached = self._reached(layouts, given, fields)
        adaptors = self._adaptors()
        wrapped: dict[str, nn.Module] = {}
        for n, m in self._models.items():
            adaptor = adaptors[n]
            if adaptor is not None:
                adaptor = picked(adaptor, wanted_of(self._items, n))
            wrapped[n] = Adapted(m, adaptor, as_tuple=self._as_tuple[n])
        own: dict[str, Any] = {"student": wrapped["student"], "loss_model": self._trained}
        unused = {
            name: [n for n, p in module.named_parameters() if id(p) not in reached]
            for name, module in own.items()
            if module is not None and reached
        }
        if unused.get("student"):
            names = [n.removeprefix("model.") for n in unused["student"]]
            logger.info("no loss depends on these parameters, which stay as they are: %s", names)
        return self._assembled(self._terms(layouts), wrapped, layouts, unused)

    def _reached(self, layouts: dict[str, Layout], given: Any, fields: Any) -> set[int]:
        """The parameters that the loss depends on, found in a step that changes nothing."""
        with still([*self._models.values()], self.student_model):
            found = leaves(self._loss(layouts, given, fields, 0))
        own = {id(p) for m in (self.student_model, self._trained) if m for p in m.parameters()}
        outside = [tuple(p.shape) for p in found if id(p) not in own]
        if outside:
            raise RuntimeError(
                f"the loss depends on parameters of shapes {outside} that belong neither to the "
                "student nor to the loss model (a layer in an output adaptor, say). A layer that "
                "is a submodule of the student can be compiled."
            )
        return {id(p) for p in found}

    def _assembled(
        self,
        terms: Mapping[str, Term],
        wrapped: Mapping[str, nn.Module],
        layouts: Mapping[str, Layout],
        unused: Mapping[str, Sequence[str]],
    ) -> Objective:
        def inputs(name: str) -> Callable[[Any], Any]:
            return lambda fields: (layouts[name].join(fields[name]),)

        models = {n: frozen(wrapped[n], inputs=inputs(n)) for n in self._teachers}
        models["student"] = trainable(
            wrapped["student"], inputs=inputs("student"), unused=unused.get("student", ())
        )
        if self._trained is not None:
            models["loss_model"] = trainable(self._trained, unused=unused.get("loss_model", ()))
        return Objective(terms, **models)

    def _terms(self, layouts: Mapping[str, Layout]) -> dict[str, Term]:
        fields = ref("batch")
        inputs = {name: joined(layout, fields[name]) for name, layout in layouts.items()}
        if self._config is None:
            return {"loss": self._own_loss(inputs)}
        masked = {item.teacher_name for item in self._items if item.loss in MASKED}
        terms = terms_from_config(
            self._config.distill_config,
            losses=self._config.own_losses,
            teachers=list(self._teachers),
            inputs=inputs,
            masks={n: mask_of(self._teachers[n], layouts[n], fields[n]) for n in masked},
            whole_batch=fields["whole"],
        )
        return {
            name: replace(t, weight=self._weight(i)) if isinstance(t.weight, Number) else t
            for i, (name, t) in enumerate(terms.items())
        }

    def _weight(self, place: int) -> Callable[[int], float]:
        """A weight as it is in the config at the time of a step."""
        return lambda step: self._items[place].weight

    def _own_loss(self, inputs: Mapping[str, Ref]) -> Term:
        """The user's own loss model: one term."""
        of_teacher = self._together({n: ref(n) for n in self._teachers})
        given = self._together({n: inputs[n] for n in self._teachers})
        args = (of_teacher, ref("student"), given, inputs["student"])
        return term(
            _itself,
            call(self.loss_model, *args) if self._trained is None else module("loss_model")(*args),
        )

    def _together(self, refs: Mapping[str, Ref]) -> Ref:
        """One ref for all teachers, in the form in which the teachers were given."""
        if is_one(self.teacher_model):
            return refs["teacher"]
        return call(form_for(self.teacher_model), *refs.values())

    @property
    def _models(self) -> dict[str, nn.Module]:
        return {"student": self.student_model, **self._teachers}

    @property
    def _config(self) -> MultiLayerBasedDistillationLoss | None:
        """The loss model, if it is that of a config; not a subclass that computes another loss."""
        if not isinstance(self.loss_model, MultiLayerBasedDistillationLoss):
            return None
        forward = type(self.loss_model).forward
        return self.loss_model if forward is MultiLayerBasedDistillationLoss.forward else None

    @property
    def _trained(self) -> nn.Module | None:
        """The user's own loss model, if it has parameters to train."""
        if self._config is not None or not isinstance(self.loss_model, nn.Module):
            return None
        trained = any(p.requires_grad for p in self.loss_model.parameters())
        return self.loss_model if trained else None

    def _parse(self) -> list[Item]:
        if self._config is None:
            return []
        config = self._config
        teachers = list(self._teachers)
        return parse(config.distill_config, losses=config.own_losses, teachers=teachers)

    def _adaptors(self) -> dict[str, Any]:
        if self._config is None:
            return dict.fromkeys(["student", *self._teachers])
        return adaptors_of(self._config, list(self._teachers))


def _itself(value: Tensor) -> Tensor:
    return value
