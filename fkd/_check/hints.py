"""What to write instead, where it can be told from what a term was given."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from .._base.errors import nearest
from .._objective.apply import on_request
from .._objective.models import Model
from .._objective.terms import Term
from .._refs.paths import describe
from .._refs.refs import Ref, output_path, roots


def record_hint(term: Term, args: Sequence[Any]) -> str:
    """What to write where a whole output was given instead of one of its values."""
    for ref, value in zip(term.args, args, strict=True):
        if isinstance(value, Mapping):
            first = next(iter(value), "logits")
            return f" {ref!r} is {describe(value)}. Take one: {ref!r}.{first}."
        if isinstance(value, list) and all(map(_is_number, value)):
            return (
                f" {ref!r} is a list of {len(value)} numbers; a tensor is expected. Make one in "
                "the loader's collate function: torch.tensor(numbers)."
            )
        if (value is None or isinstance(value, int | float | str)) and _of_batch(ref):
            return f" {ref!r} is {describe(value)}; a tensor is expected. {_AS_TENSORS}"
        if isinstance(value, list) and _of_batch(ref):
            return f" {ref!r} is {describe(value)}. {_AS_TENSORS}"
        if isinstance(value, tuple | list):
            return f" {ref!r} is {describe(value)}. Take one: {ref!r}[0]."
    return ""


_AS_TENSORS = (
    "Make a tensor of it in the loader's collate function; the rows of a datasets.Dataset are "
    "tensors after dataset.with_format('torch')."
)


def inputs_hint(model: Model, batch: Any, args: Sequence[Any], given: Mapping[str, Any]) -> str:
    """What to write where a forward pass fails on what it is given.

    Args:
      model: whose forward failed.
      batch: the one it failed on.
      args: what the forward was given by place.
      given: what the forward was given by name.
    """
    if model.inputs is not None and isinstance(args, list) and len(args) > 1:
        stack = "torch.stack" if all(isinstance(x, Tensor) for x in args) else "torch.tensor"
        return (
            f" inputs gave a list of {len(args)}, which are so many arguments. Samples become one "
            f"tensor in the loader's collate function, by {stack}."
        )
    lists = [name for name, value in given.items() if isinstance(value, list)]
    if lists:
        return f" {lists[0]} is {describe(given[lists[0]])}. {_AS_TENSORS}"
    if isinstance(batch, list) and all(isinstance(x, Mapping) for x in batch):
        return (
            " A list of samples becomes a batch in the loader: "
            "DataLoader(..., collate_fn=torch.utils.data.default_collate)."
        )
    if model.inputs is not None or model.module is None:
        return ""
    missing = _missing(model.module.forward, given) if isinstance(batch, Mapping) else []
    if not missing:
        return f" Say what it takes: fkd.{model.kind}(module, inputs=lambda batch: ...)."
    free = [str(name) for name in batch if name not in given and "label" not in str(name)]
    taken = f"batch[{free[0]!r}]" if free else "batch[...]"
    if len(missing) > 1:
        taken = "{" + ", ".join(f"{name!r}: batch[...]" for name in missing) + "}"
    fields = " and ".join(map(repr, missing))
    return (
        f" Its forward takes {fields}, and the batch has no field of that name: call it so in the "
        f"loader, or say which it is: fkd.{model.kind}(module, inputs=lambda batch: {taken})."
    )


def _missing(forward: Callable[..., Any], given: Mapping[str, Any]) -> list[str]:
    """What a forward requires and is not given."""
    parameters = inspect.signature(forward).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    required = (p.name for p in parameters if p.default is p.empty and p.kind in named)
    return [name for name in required if name not in given]


def asked_hint(models: Mapping[str, Model], ref: Ref) -> str:
    """The outputs that a model gives only when a ref asks for them, if one of these is meant."""
    path = output_path(ref)
    model = models.get(path[0]) if path is not None else None
    if path is None or len(path[1]) != 1 or model is None or model.module is None:
        return ""
    names = on_request(model.module)
    near = nearest(str(path[1][0]), names)
    return f" {near}The model gives {', '.join(names)} where a ref reads them." if near else ""


def _of_batch(ref: Ref) -> bool:
    return roots(ref) == frozenset(["batch"])


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
