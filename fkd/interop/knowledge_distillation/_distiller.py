"""The distiller: one update and one call of the evaluator for every batch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from fkd._apply import frozen, trainable
from fkd._derived import call, module
from fkd._objective import Objective
from fkd._refs import Ref, ref
from fkd._terms import Term, term
from fkd.interop.modules import Bound, bind
from fkd.loops._batch import tensors_only

from ._adapt import Adapted, Layout, adapt, call_with, joined, mask_of, split, wants_tuple
from ._config import MASKED, Item, check_outputs, parse, terms_from_config
from ._loss_model import MultiLayerBasedDistillationLoss
from ._unreached import unreached

logger = logging.getLogger(__name__)

DataAdaptor = Callable[[Any, Any], Any]

_MOST_VARIANTS = 8


class KnowledgeDistiller:
    """Distils teachers into a student that learns in place.

    Forward passes, losses and gradient of a step are one compiled graph; the optimizer and the
    evaluator are the user's own.

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
      compile: True, False, or options for `torch.compile`. What cannot be compiled (a loss that
        looks at values, say) runs eagerly, with a warning.
    """

    def __init__(
        self,
        teacher_model: nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module],
        student_model: nn.Module,
        train_dataloader: Iterable[Any],
        dev_dataloader: Any,
        device: torch.device | str,
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
        self.device = torch.device(device)
        self.loss_model = loss_model.to(device) if isinstance(loss_model, nn.Module) else loss_model
        self.optimizer = optimizer
        self.evaluator = evaluator
        self.num_epoch = num_epoch
        self.train_data_adaptor = train_data_adaptor
        self.dev_data_adaptor = dev_data_adaptor
        self.compile = compile
        self._teachers = _named_teachers(teacher_model)
        for teacher in self._teachers.values():
            teacher.to(device)
        self._items = self._parse()
        self._bound: list[tuple[dict[str, Layout], Bound]] = []

    def distillate(self) -> None:
        """Train for `num_epoch` epochs.

        Raises:
          ValueError: the config names a layer or output that the adaptors do not give (before
            the first update), or an adaptor gives something else than it should.
        """
        self._items = self._parse()
        self._bound = []
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
        given = self._inputs(batch)
        tensors = {name: split(value) for name, value in given.items()}
        layouts = {name: layout for name, (_, layout) in tensors.items()}
        fields: dict[str, Any] = {name: found for name, (found, _) in tensors.items()}
        if any(item.label is not None for item in self._items):
            fields["whole"] = tensors_only(batch, self.device)
        loss = self._differentiated(layouts, given, fields, count)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def _differentiated(self, layouts: Any, given: Any, fields: Any, count: int) -> Tensor:
        """The loss, with the gradient in `.grad`."""
        bound = self._bind(layouts, given, fields)
        if self.compile is not False:
            try:
                return bound.backward(fields, count)[0]
            except TorchDynamoException as error:
                self._give_up_compiling(error)
                bound = self._bind(layouts, given, fields)
        # Plain autograd: the user's functions may look at values, which function transforms
        # do not allow.
        loss, _ = bound(fields, count)
        loss.backward()
        return loss.detach()

    def _give_up_compiling(self, error: Exception) -> None:
        warnings.warn(
            "KnowledgeDistiller: the step cannot be compiled, and runs eagerly from here on. Pass "
            "compile=False, or change what the compiler stumbles over: " + str(error).strip(),
            stacklevel=5,
        )
        self.compile = False
        self._bound.clear()

    def _inputs(self, batch: Any) -> dict[str, Any]:
        """What each model is called with, by its name."""
        given = self.train_data_adaptor(self.device, batch)
        if not isinstance(given, tuple | list) or len(given) != 2:
            raise ValueError(
                f"train_data_adaptor gave a {type(given).__name__}; a pair (teacher_input, "
                "student_input) is expected."
            )
        return {"student": given[1], **_for_each(given[0], list(self._teachers))}

    def _bind(self, layouts: dict[str, Layout], given: Any, fields: Any) -> Bound:
        """The objective for inputs with these constants; there is one, as a rule."""
        for known, bound in self._bound:
            if all(layouts[name].same(known[name]) for name in layouts):
                return bound
        if len(self._bound) == _MOST_VARIANTS and self.compile is not False:
            constants = {name: sorted(x.constants) for name, x in layouts.items()}
            raise ValueError(
                f"train_data_adaptor gave fields that are no tensors, {constants}, with other "
                "values in every batch; a compiled step is compiled for each. Make them tensors, "
                "leave them out, or pass compile=False."
            )
        bound = bind(self._objective(layouts, given, fields), compile=self.compile)
        if len(self._bound) == _MOST_VARIANTS:
            self._bound.pop(0)
        self._bound.append((layouts, bound))
        return bound

    def _objective(self, layouts: dict[str, Layout], given: Any, fields: Any) -> Objective:
        models = {"student": self.student_model, **self._teachers}
        adaptors = self._adaptors()
        outputs = {n: _output(m, given[n]) for n, m in models.items()}
        if isinstance(self.loss_model, MultiLayerBasedDistillationLoss):
            adapted = {
                n: adapt(adaptors[n], output, whose="student" if n == "student" else "teacher")
                for n, output in outputs.items()
            }
            check_outputs(self._items, adapted)
        wrapped = {
            n: Adapted(
                m, adaptors[n], as_tuple=bool(adaptors[n] and wants_tuple(adaptors[n], outputs[n]))
            )
            for n, m in models.items()
        }
        del outputs
        terms = self._terms(layouts)
        objective = self._assembled(terms, wrapped, layouts, {})
        unused = unreached(objective, fields)
        if unused:
            names = [n.removeprefix("model.") for n in unused.get("student", ())]
            logger.info("no loss depends on these parameters, which stay as they are: %s", names)
        return self._assembled(terms, wrapped, layouts, unused)

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
        if isinstance(self.loss_model, nn.Module) and any(
            p.requires_grad for p in self.loss_model.parameters()
        ):
            models["loss_model"] = trainable(self.loss_model, unused=unused.get("loss_model", ()))
        return Objective(terms, **models)

    def _terms(self, layouts: Mapping[str, Layout]) -> dict[str, Term]:
        fields = ref("batch")
        inputs = {name: joined(layout, fields[name]) for name, layout in layouts.items()}
        if not isinstance(self.loss_model, MultiLayerBasedDistillationLoss):
            return {"loss": self._own_loss(inputs)}
        masked = {item.teacher_name for item in self._items if item.loss in MASKED}
        return terms_from_config(
            self.loss_model.distill_config,
            losses=self.loss_model.own_losses,
            teachers=list(self._teachers),
            inputs=inputs,
            masks={n: mask_of(self._teachers[n], layouts[n], fields[n]) for n in masked},
            whole_batch=fields["whole"],
        )

    def _own_loss(self, inputs: Mapping[str, Ref]) -> Term:
        """The user's own loss model: one term."""
        of_teacher = self._together({n: ref(n) for n in self._teachers})
        given = self._together({n: inputs[n] for n in self._teachers})
        args = (of_teacher, ref("student"), given, inputs["student"])
        trained = isinstance(self.loss_model, nn.Module) and any(
            p.requires_grad for p in self.loss_model.parameters()
        )
        loss = module("loss_model")(*args) if trained else call(self.loss_model, *args)
        return term(_itself, loss)

    def _together(self, refs: Mapping[str, Ref]) -> Ref:
        """One value for all teachers, in the form in which the teachers were given."""
        names = list(refs)
        if isinstance(self.teacher_model, nn.Module):
            return refs[names[0]]
        if isinstance(self.teacher_model, Mapping):
            return call(lambda *values: dict(zip(names, values, strict=True)), *refs.values())
        return call(lambda *values: list(values), *refs.values())

    def _parse(self) -> list[Item]:
        if not isinstance(self.loss_model, MultiLayerBasedDistillationLoss):
            return []
        return parse(
            self.loss_model.distill_config,
            losses=self.loss_model.own_losses,
            teachers=list(self._teachers),
        )

    def _adaptors(self) -> dict[str, Any]:
        if not isinstance(self.loss_model, MultiLayerBasedDistillationLoss):
            return dict.fromkeys(["student", *self._teachers])
        given: Any = self.loss_model.teacher_output_adaptor
        if callable(given):
            given = [given] * len(self._teachers)
        elif isinstance(given, Mapping):
            given = [given.get(name) for name in self._teachers]
        found = dict(zip(self._teachers, given or [], strict=False))
        found["student"] = self.loss_model.student_output_adaptor
        wrong = [n for n in ("student", *self._teachers) if not callable(found.get(n))]
        if wrong:
            raise ValueError(
                f"MultiLayerBasedDistillationLoss: no output adaptor for {wrong}; a function of "
                "the model's output that gives {layer: {output: tensor}} is expected."
            )
        return found


def _named_teachers(given: Any) -> dict[str, nn.Module]:
    if isinstance(given, nn.Module) and not isinstance(given, nn.ModuleList | nn.ModuleDict):
        return {"teacher": given}
    if isinstance(given, Mapping | nn.ModuleDict):
        named = {str(name): teacher for name, teacher in given.items()}
    else:
        named = {f"teacher_{i}": teacher for i, teacher in enumerate(given)}
    taken = named.keys() & {"student", "batch", "loss_model"}
    if taken or not named:
        raise ValueError(
            f"KnowledgeDistiller: teachers {sorted(named)}; at least one is expected, and the "
            "names student, batch and loss_model are taken."
        )
    return named


def _for_each(given: Any, names: Sequence[str]) -> dict[str, Any]:
    """The input of each teacher: its own, where there are several inputs, or the one there is."""
    if len(names) > 1:
        if isinstance(given, Mapping) and set(given) == set(names):
            return {name: given[name] for name in names}
        several = isinstance(given, tuple | list) and len(given) == len(names)
        if several and all(isinstance(x, Mapping | tuple | list) for x in given):
            return dict(zip(names, given, strict=True))
    return dict.fromkeys(names, given)


def _output(model: nn.Module, given: Any) -> Any:
    """The output of a model for its first input, in eval mode, so that nothing changes."""
    output = _evaluated(model, given)
    config = getattr(model, "config", None)
    asked = getattr(config, "output_attentions", False)
    if asked and isinstance(output, Mapping) and not output.get("attentions", True):
        # transformers gives no maps with fused attention, silently, though they are asked for.
        logger.info("%s: attention set to 'eager', for output_attentions.", type(model).__name__)
        model.set_attn_implementation("eager")  # pyright: ignore[reportCallIssue]
        output = _evaluated(model, given)
    return output


def _evaluated(model: nn.Module, given: Any) -> Any:
    training = {m: m.training for m in model.modules()}
    try:
        with torch.no_grad():
            model.eval()
            return call_with(model, given)
    finally:
        for part, mode in training.items():
            part.training = mode


def _itself(value: Tensor) -> Tensor:
    return value
