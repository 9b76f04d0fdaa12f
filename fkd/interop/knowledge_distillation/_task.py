"""What a distiller distils, as one record, and its config read into items."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from ._adapt import OutputAdaptor, picked
from ._config import Item, parse, same_items, wanted_of
from ._loss_model import MultiLayerBasedDistillationLoss
from ._teachers import Teachers, adaptors_of, named_teachers

LossModel: TypeAlias = nn.Module | Callable[..., Any]
"""`(teacher_output, student_output, teacher_input, student_input) -> loss`."""


@dataclass(frozen=True, eq=False)
class Task:
    """The models, the loss between them, and what its config says now.

    Attributes:
      teacher_model: the teacher or teachers, in the form in which the user has them.
      teachers: the same by name.
      student: the student.
      loss_model: the user's.
      config: the loss model if it is that of a config; None if it computes a loss of its own.
      trained: the loss model if it has parameters to train.
      items: the entries of the config; none for a loss of the user's own.
    """

    teacher_model: Teachers
    teachers: Mapping[str, nn.Module]
    student: nn.Module
    loss_model: LossModel
    config: MultiLayerBasedDistillationLoss | None
    trained: nn.Module | None
    items: Sequence[Item]

    @property
    def models(self) -> dict[str, nn.Module]:
        """The student, and the teachers by name."""
        return {"student": self.student, **self.teachers}

    def adaptors(self) -> dict[str, OutputAdaptor | None]:
        """What makes `{layer: {output: tensor}}` of each model's output; None leaves it."""
        if self.config is None:
            return dict.fromkeys(self.models)
        return {**adaptors_of(self.config, list(self.teachers))}

    def picking(self, name: str) -> OutputAdaptor | None:
        """The adaptor of a model, giving only what the config reads."""
        adaptor = self.adaptors()[name]
        return None if adaptor is None else picked(adaptor, wanted_of(self.items, name))

    def same(self, other: Task) -> bool:
        """Whether a step for one serves the other, too: all but the weights is equal."""
        return same_items(self.items, other.items)


def task_of(teacher_model: Teachers, student: nn.Module, loss_model: LossModel) -> Task:
    """Models and loss model as one record.

    Raises:
      ValueError: the config is mistaken (see `terms_from_config`), or a teacher's name is.
    """
    teachers = named_teachers(teacher_model)
    config = _config_of(loss_model)
    items = [] if config is None else _items(config, teachers)
    trained = None if config is not None else _trained(loss_model)
    return Task(teacher_model, teachers, student, loss_model, config, trained, items)


def _items(config: MultiLayerBasedDistillationLoss, teachers: Mapping[str, nn.Module]):
    return parse(config.distill_config, losses=config.own_losses, teachers=list(teachers))


def _config_of(loss_model: LossModel) -> MultiLayerBasedDistillationLoss | None:
    """Not for a subclass, which computes another loss."""
    if not isinstance(loss_model, MultiLayerBasedDistillationLoss):
        return None
    forward = type(loss_model).forward
    return loss_model if forward is MultiLayerBasedDistillationLoss.forward else None


def _trained(loss_model: LossModel) -> nn.Module | None:
    if not isinstance(loss_model, nn.Module):
        return None
    return loss_model if any(p.requires_grad for p in loss_model.parameters()) else None
