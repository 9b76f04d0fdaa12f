"""One teacher or several, their adaptors, and models that are only looked at."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, TypeAlias, TypeGuard, cast

import torch
from torch import nn

from fkd._objective.models import evaluating

from ._adapt import OutputAdaptor, call_with
from ._loss_model import MultiLayerBasedDistillationLoss

logger = logging.getLogger(__name__)


Teachers: TypeAlias = nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module]
"""One teacher, or several as a list or by name (also as `ModuleList` and `ModuleDict`)."""


def named_teachers(teachers: Teachers) -> dict[str, nn.Module]:
    """The teachers by name: `teacher`, `teacher_0`, or the names that they have.

    Raises:
      ValueError: there is no teacher, or one has the name of something else.
    """
    if is_one(teachers):
        return {"teacher": teachers}
    if isinstance(teachers, Mapping | nn.ModuleDict):
        named = {str(name): teacher for name, teacher in teachers.items()}
    else:
        several = cast(Sequence[nn.Module], teachers)
        named = {f"teacher_{i}": teacher for i, teacher in enumerate(several)}
    taken = named.keys() & {"student", "batch", "loss_model"}
    if taken or not named:
        raise ValueError(
            f"KnowledgeDistiller: teachers {sorted(named)}; at least one is expected, and the "
            "names student, batch and loss_model are taken."
        )
    return named


def is_one(teachers: Teachers) -> TypeGuard[nn.Module]:
    """Whether there is one teacher, not a list or dict of them."""
    several = nn.ModuleList | nn.ModuleDict
    return isinstance(teachers, nn.Module) and not isinstance(teachers, several)


def form_for(teachers: Teachers) -> Callable[..., Any]:
    """The values of all teachers -> the form in which the user has the teachers."""
    if is_one(teachers):
        return lambda value: value
    if isinstance(teachers, Mapping | nn.ModuleDict):
        names = list(teachers)
        return lambda *values: dict(zip(names, values, strict=True))
    return lambda *values: list(values)


def adaptors_of(
    loss_model: MultiLayerBasedDistillationLoss, teachers: Sequence[str]
) -> dict[str, OutputAdaptor]:
    """The output adaptor of each model, by its name.

    Raises:
      ValueError: a model has none.
    """
    of_teachers = loss_model.teacher_output_adaptor
    if of_teachers is None or callable(of_teachers):
        each: Sequence[OutputAdaptor | None] = [of_teachers] * len(teachers)
    elif isinstance(of_teachers, Mapping):
        each = [of_teachers.get(name) for name in teachers]
    else:
        each = of_teachers
    adaptors = dict(zip(teachers, each, strict=False))
    adaptors["student"] = loss_model.student_output_adaptor
    called = {name: adaptor for name, adaptor in adaptors.items() if callable(adaptor)}
    wrong = [name for name in ("student", *teachers) if name not in called]
    if wrong:
        raise ValueError(
            f"MultiLayerBasedDistillationLoss: no output adaptor for {wrong}; a function of "
            "the model's output that gives {layer: {output: tensor}} is expected."
        )
    return called


def output_of(model: nn.Module, arguments: Any) -> Any:
    """The output of a model for its first input, in eval mode, so that nothing changes."""
    output = _evaluated(model, arguments)
    config = getattr(model, "config", None)
    asked = getattr(config, "output_attentions", False)
    if asked and isinstance(output, Mapping) and not output.get("attentions", True):
        # transformers gives no maps with fused attention, silently, though they are asked for.
        logger.info("%s: attention set to 'eager', for output_attentions.", type(model).__name__)
        model.set_attn_implementation("eager")  # pyright: ignore[reportCallIssue]
        output = _evaluated(model, arguments)
    return output


def _evaluated(model: nn.Module, arguments: Any) -> Any:
    with still([model], model), torch.no_grad():
        return call_with(model, arguments)


@contextlib.contextmanager
def still(models: Sequence[nn.Module], student: nn.Module) -> Generator[None, None, None]:
    """Models in eval mode, and random numbers that are drawn again: nothing changes."""
    devices = {p.device for p in student.parameters() if p.device.type == "cuda"}
    drawn_again = torch.random.fork_rng(devices=[device.index for device in devices])
    with evaluating(*models), drawn_again:
        yield
