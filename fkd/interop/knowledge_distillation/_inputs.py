"""What the models are called with in one step: the tensors, and all that is constant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ._adapt import Layout, split


@dataclass(frozen=True, eq=False)
class Inputs:
    """One batch as the data adaptor has made it.

    Attributes:
      calls: what each model is called with, by its name.
      layouts: what a call holds besides tensors: constants of the compiled step.
      fields: the tensors of each call, by the model's name, and under `whole` the batch of the
        loader where labels are read from it: the batch of the compiled step.
    """

    calls: Mapping[str, Any]
    layouts: Mapping[str, Layout]
    fields: Mapping[str, Any]


def inputs_of(adapted: Any, teachers: Sequence[str], whole: Mapping[str, Any]) -> Inputs:
    """The inputs of a step.

    Args:
      adapted: what the data adaptor returned.
      teachers: their names.
      whole: further fields.

    Raises:
      ValueError: the adaptor did not return a pair.
    """
    if not isinstance(adapted, tuple | list) or len(adapted) != 2:
        raise ValueError(
            f"train_data_adaptor gave a {type(adapted).__name__}; a pair (teacher_input, "
            "student_input) is expected."
        )
    calls = {"student": adapted[1], **_for_each(adapted[0], teachers)}
    parts = {name: split(call) for name, call in calls.items()}
    layouts = {name: layout for name, (_, layout) in parts.items()}
    fields = {name: tensors for name, (tensors, _) in parts.items()}
    return Inputs(calls, layouts, {**fields, **whole})


def _for_each(teacher_input: Any, names: Sequence[str]) -> dict[str, Any]:
    """The input of each teacher: its own, where there are several inputs, or the one there is."""
    if len(names) > 1:
        if isinstance(teacher_input, Mapping) and set(teacher_input) == set(names):
            return {name: teacher_input[name] for name in names}
        several = isinstance(teacher_input, tuple | list) and len(teacher_input) == len(names)
        if several and all(isinstance(x, Mapping | tuple | list) for x in teacher_input):
            return dict(zip(names, teacher_input, strict=True))
    return dict.fromkeys(names, teacher_input)
