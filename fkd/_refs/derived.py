"""Derived refs: constants, functions of the context, calls of functions and named modules."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._base.errors import RefError
from ..schedules import Schedule
from .code import Call as Call
from .code import Constant, Node, Ref, filled, refs_in
from .context import Context
from .paths import describe, name_of, show
from .syntax import NEVER_TRAINED, is_trained, operand_hint
from .trees import arguments, plain


@dataclass(frozen=True, eq=False, repr=False)
class Function(Node):
    """Any callable of the context. What it reads cannot be known, so that with one of them every
    model runs, and nothing that it reads can be kept on the disk."""

    fn: Callable[[Context], Any]

    def __repr__(self) -> str:
        return name_of(self.fn)

    def __hash__(self) -> int:
        return hash(self.fn)

    @property
    def roots(self) -> None:
        return None

    def compute(self, ctx: Context, *values: Any) -> Any:
        value = self.fn(ctx)
        if isinstance(value, Ref):
            raise RefError(
                f"{self!r} returned {value!r}, a ref and not a value. Pass the ref itself, or "
                f"give it the context: ({value!r})(ctx)."
            )
        return value


@dataclass(frozen=True, eq=False, repr=False)
class AsFunction(Node):
    """A named model as a pure function of its inputs, handed to another function."""

    name: str

    def __repr__(self) -> str:
        return f"module({self.name!r})"

    @property
    def roots(self) -> frozenset[str]:
        return frozenset([self.name])

    def compute(self, ctx: Context, *values: Any) -> Any:
        return ctx.functions[self.name]()


@dataclass(frozen=True, eq=False, repr=False)
class Nested(Node):
    """A list, tuple or dict with refs in it."""

    tree: Any

    def __repr__(self) -> str:
        return repr(self.tree)

    def compute(self, ctx: Context, *values: Any) -> Any:
        return filled(self.tree, iter(values))


@dataclass(frozen=True)
class Module:
    """A named module of the objective; calling it on refs gives a ref."""

    name: str

    def __repr__(self) -> str:
        return f"module({self.name!r})"

    def __call__(self, *args: Any, **kwargs: Any) -> Ref:
        return Ref(Call(None, self.name, *arguments(self.name, _operands(args), kwargs)))


def module(name: str) -> Module:
    """A learnable adapter (or any module), named here and given to `Objective` by that name.

    Example:
      >>> project = module("project")
      >>> project(student.hidden_states[3])
      project(student.hidden_states[3])
    """
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"module: name is {describe(name)}; a name is expected. The module itself is given to "
            "the objective: Objective(terms, name=fkd.trainable(module)), and "
            "fkd.module('name')(student.logits) applies it."
        )
    return Module(name)


def call(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Ref:
    """A ref to `fn(*args, **kwargs)`, where any argument may be a ref.

    Positional callables count as refs (functions of the context); everything else is passed
    as it is. Arithmetic, comparisons, indexing, methods and torch functions of refs need no
    `call`: `torch.softmax(student.logits / 2, -1)` is `call(torch.softmax, ...)`.

    Args:
      fn: a pure function; what it does to its arguments in place is seen by other terms.
      args, kwargs: its arguments; refs among them, and in lists, tuples and dicts, are filled in.
        `fkd.module("student")` among the positional ones is that model as a pure function, with
        the parameters of the step: `torch.func` differentiates it by its inputs.

    Example:
      >>> call(torch.softmax, student.logits, dim=-1)
      call(softmax, student.logits, dim=-1)
    """
    if isinstance(fn, Module):
        return fn(*args, **kwargs)
    if isinstance(fn, Ref) or not callable(fn):
        raise TypeError(
            f"call: fn is {show(fn)}; a function is expected first, then its arguments: "
            "fkd.call(torch.softmax, student.logits, dim=-1)."
        )
    if isinstance(fn, nn.Module) and any(map(is_trained, fn.parameters())):
        raise TypeError(f"call: fn is a {type(fn).__name__} with parameters. {NEVER_TRAINED}")
    if not _computes_tensors(fn):
        args = tuple(Ref(AsFunction(x.name)) if isinstance(x, Module) else x for x in args)
    return Ref(Call(fn, "", *arguments(name_of(fn), _operands(args), kwargs)))


def _computes_tensors(fn: Callable[..., Any]) -> bool:
    """Whether a function is one of torch's own on tensors, which can do nothing with a model."""
    return inspect.isbuiltin(fn) or (getattr(fn, "__module__", "") or "").startswith("torch.nn.")


def stop_gradient(value: Ref | Callable[[Context], Any]) -> Ref:
    """The same value, through which no gradient flows (self-distillation, say)."""
    return Ref(Call(torch.detach, "", (as_ref(value),)))


def as_ref(value: Any) -> Ref:
    """A ref from a ref, a callable of the context, or a tensor.

    Raises:
      TypeError: anything else; the message says how to write what was meant.
    """
    if isinstance(value, Ref):
        return value
    hint = _hint(value)
    if hint:
        raise TypeError(f"{show(value)} is not a ref. {hint}")
    if isinstance(value, Tensor):
        return Ref(Constant(value))
    if isinstance(value, tuple | list | Mapping) and any(True for _ in refs_in(value)):
        return Ref(Nested(plain(value)))
    if callable(value):
        return Ref(Function(value))
    raise TypeError(
        f"{show(value)} is not a ref. Pass a ref such as student.logits, a function of the "
        "context, or a tensor."
    )


def _hint(value: Any) -> str:
    """How to write what is meant by a value that looks like a ref and is none; or nothing."""
    if isinstance(value, Module):
        return f"Call it on a ref: {value.name}(student.logits)."
    if isinstance(value, nn.Module):
        return (
            "A module is given to the objective, name=fkd.trainable(module), and called by that "
            "name: fkd.module('name')(student.logits)."
        )
    if isinstance(value, Schedule):
        return "A schedule moves a weight or an option: temperature=fkd.schedules.linear(...)."
    if isinstance(value, type):
        return "It is a class. Pass a ref such as student.logits."
    if isinstance(value, str):
        return "It is a string: write refs without quotes, student.logits."
    if isinstance(value, bool):
        return operand_hint(value)
    if isinstance(value, numbers.Number):
        return f"Write it as a tensor: torch.tensor({value})."
    return NEVER_TRAINED if is_trained(value) else ""


def _operands(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(map(_operand, values))


def _operand(value: Any) -> Any:
    """An argument as it is kept: functions of the context are refs, constants are themselves."""
    if isinstance(value, Module | nn.Module):
        return as_ref(value)  # which refuses it, and says what to write
    function = callable(value) and not isinstance(value, Ref | type)
    return Ref(Function(value)) if function else value
