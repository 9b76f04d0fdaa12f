"""What a distiller is given: one teacher or several, inputs for each, and models to look at."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ._adapt import call_with
from ._loss_model import MultiLayerBasedDistillationLoss

logger = logging.getLogger(__name__)


def named_teachers(given: Any) -> dict[str, nn.Module]:
    if is_one(given):
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


def is_one(given: Any) -> bool:
    """Whether there is one teacher, not a list or dict of them."""
    return isinstance(given, nn.Module) and not isinstance(given, nn.ModuleList | nn.ModuleDict)


def form_for(given: Any) -> Callable[..., Any]:
    """The values of all teachers -> the form in which the teachers were given."""
    if is_one(given):
        return lambda value: value
    if isinstance(given, Mapping | nn.ModuleDict):
        names = list(given)
        return lambda *values: dict(zip(names, values, strict=True))
    return lambda *values: list(values)


def adaptors_of(loss_model: MultiLayerBasedDistillationLoss, teachers: Sequence[str]) -> Any:
    """The output adaptor of each model, by its name."""
    given: Any = loss_model.teacher_output_adaptor
    if callable(given):
        given = [given] * len(teachers)
    elif isinstance(given, Mapping):
        given = [given.get(name) for name in teachers]
    found: dict[str, Any] = dict(zip(teachers, given or [], strict=False))
    found["student"] = loss_model.student_output_adaptor
    wrong = [n for n in ("student", *teachers) if not callable(found.get(n))]
    if wrong:
        raise ValueError(
            f"MultiLayerBasedDistillationLoss: no output adaptor for {wrong}; a function of "
            "the model's output that gives {layer: {output: tensor}} is expected."
        )
    return found


def inputs_of(given: Any, teachers: Sequence[str]) -> dict[str, Any]:
    """What each model is called with, by its name, from what a data adaptor gave."""
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise ValueError(
            f"train_data_adaptor gave a {type(given).__name__}; a pair (teacher_input, "
            "student_input) is expected."
        )
    return {"student": given[1], **for_each(given[0], teachers)}


def for_each(given: Any, names: Sequence[str]) -> dict[str, Any]:
    """The input of each teacher: its own, where there are several inputs, or the one there is."""
    if len(names) > 1:
        if isinstance(given, Mapping) and set(given) == set(names):
            return {name: given[name] for name in names}
        several = isinstance(given, tuple | list) and len(given) == len(names)
        if several and all(isinstance(x, Mapping | tuple | list) for x in given):
            return dict(zip(names, given, strict=True))
    return dict.fromkeys(names, given)


def output_of(model: nn.Module, given: Any) -> Any:
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
    with still([model], model), torch.no_grad():
        return call_with(model, given)


@contextlib.contextmanager
def still(models: Sequence[nn.Module], student: nn.Module) -> Generator[None, None, None]:
    """Models in eval mode, and random numbers that are drawn again: nothing changes."""
    training = {part: part.training for model in models for part in model.modules()}
    devices = {p.device for p in student.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=[device.index for device in devices]):
            for model in models:
                model.eval()
            yield
    finally:
        for part, mode in training.items():
            part.training = mode
