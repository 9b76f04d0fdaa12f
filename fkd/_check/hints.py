"""What to write instead, where it can be told from what a term was given."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .._objective.terms import Term
from .._refs.paths import describe
from .._refs.refs import output_path


def record_hint(term: Term, args: Sequence[Any]) -> str:
    """What to write where a whole output was given instead of one of its values."""
    for ref, value in zip(term.args, args, strict=True):
        if isinstance(value, Mapping):
            first = next(iter(value), "logits")
            return f" {ref!r} is {describe(value)}. Take one: {ref!r}.{first}."
        if isinstance(value, list) and all(map(_is_number, value)):
            return (
                f" {ref!r} is a list of {len(value)} numbers; a tensor is expected. Make one in "
                "the loader: torch.tensor(numbers)."
            )
        if isinstance(value, tuple | list):
            return f" {ref!r} is {describe(value)}. Take one: {ref!r}[0]."
    return ""


def _is_number(x: object) -> bool:
    return isinstance(x, int | float) or (isinstance(x, Tensor) and x.ndim == 0)


def adapter_hint(term: Term, args: Sequence[Any]) -> str:
    """The module that would make student and teacher agree, where one is obvious."""
    if len(args) < 2 or not all(isinstance(a, Tensor) and a.is_floating_point() for a in args[:2]):
        return ""
    student, teacher = args[0].shape, args[1].shape
    if len(student) != len(teacher) or student == teacher:
        return ""
    if _compares_logits(term):
        least = min(student[-1], teacher[-1])
        cut = ", ".join(f"{ref!r}[..., :{least}]" for ref in term.args[:2])
        return (
            f" If one vocabulary is the other one padded, compare what they share: {cut}. If they "
            "are different ones, see fkd.losses.uld."
        )
    differing = [i for i, (a, b) in enumerate(zip(student, teacher, strict=True)) if a != b]
    if differing == [len(student) - 1] and len(student) > 1:
        layer = f"torch.nn.Linear({student[-1]}, {teacher[-1]})"
    elif differing == [1] and len(student) == 4:
        layer = f"torch.nn.Conv2d({student[1]}, {teacher[1]}, 1)"
    else:
        return ""
    return (
        f" An adapter fits: fkd.module('project')({term.args[0]!r}) in the term, and "
        f"project=fkd.trainable({layer}) in the objective."
    )


def _compares_logits(term: Term) -> bool:
    """Whether a loss of logits is given the logits of two models. A model that returns a plain
    tensor has `logits`, too, whatever they are."""
    with contextlib.suppress(TypeError, ValueError):  # of a builtin
        names = [*inspect.signature(term.loss).parameters][:2]
        paths = [output_path(ref) for ref in term.args[:2]]
        of_logits = all(path is not None and path[1][-1:] == ("logits",) for path in paths)
        return of_logits and all(name.endswith("logits") for name in names)
    return False
