"""The distiller: one update and one call of the evaluator for every batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fkd._base.errors import ObjectiveError
from fkd.loops._base.errors import CompileError
from fkd.loops._data.batch import normalised

from ._bind import CannotCompile
from ._inputs import Inputs, inputs_of
from ._task import LossModel, Task, task_of
from ._teachers import Teachers
from ._update import Update

DataAdaptor: TypeAlias = Callable[[Any, Any], Any]


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
        teacher_model: Teachers,
        student_model: nn.Module,
        train_dataloader: Iterable[Any],
        dev_dataloader: Any,
        device: torch.device | str | None,
        loss_model: LossModel,
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
        self._step: Update | None = None
        for teacher in self._task().teachers.values():
            teacher.to(device)

    def distillate(self) -> None:
        """Train for `num_epoch` epochs.

        Raises:
          ValueError: the config names a layer or output that the adaptors do not give (before
            the first update), or an adaptor gives something else than it should.
        """
        self._step = None
        for teacher in self._task().teachers.values():
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

    def _task(self) -> Task:
        """What there is to do, with the config as it is now."""
        return task_of(self.teacher_model, self.student_model, self.loss_model)

    def _update(self, batch: Any, count: int) -> Tensor:
        if not self.student_model.training:
            self.student_model.train()
        task = self._task()
        inputs = self._inputs(task, batch)
        if self._step is None or not task.same(self._step.task):
            self._step = Update(task, inputs)
        self._step.task = task  # whose weights may be others
        loss = self._differentiated(self._step, inputs, count)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def _inputs(self, task: Task, batch: Any) -> Inputs:
        whole: dict[str, Any] = {}
        if any(item.label is not None for item in task.items):
            device = next((p.device for p in self.student_model.parameters()), None)
            whole["whole"] = normalised(batch, device)
        return inputs_of(self.train_data_adaptor(self.device, batch), list(task.teachers), whole)

    def _differentiated(self, step: Update, inputs: Inputs, count: int) -> Tensor:
        """The loss, with the gradient in `.grad`."""
        if self.compile is False:
            return step.eager(inputs, count)
        try:
            return step.compiled(inputs, count, self.compile)
        except (CannotCompile, CompileError, ObjectiveError) as error:
            reason = error
        try:
            loss = step.eager(inputs, count)
        except Exception as error:
            if isinstance(reason, ObjectiveError):  # a mistake: it lists all that is wrong
                raise reason from error
            raise
        warnings.warn(
            "KnowledgeDistiller: the step cannot be compiled, and runs eagerly from here on. Pass "
            "compile=False, or change what the compiler stumbles over: " + str(reason).strip(),
            stacklevel=4,
        )
        self.compile = False
        return loss
