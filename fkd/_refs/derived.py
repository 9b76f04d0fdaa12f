"""Derived refs: constants, functions of the context, calls of functions and named modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .context import Context
from .paths import name_of, show
from .refs import Node, Ref


@dataclass(frozen=True, eq=False, repr=False)
class Constant(Node):
    """A tensor that does not depend on the step."""

    tensor: Tensor

    def __repr__(self) -> str:
        return f"<tensor {tuple(self.tensor.shape)} at {id(self.tensor):#x}>"

    def compute(self, ctx: Context, *values: Any) -> Any:
        return self.tensor


@dataclass(frozen=True, eq=False, repr=False)
class Function(Node):
    """Any callable of the context."""

    fn: Callable[[Context], Any]

    def __repr__(self) -> str:
        return name_of(self.fn)

    def __hash__(self) -> int:
        return hash(self.fn)

    @property
    def roots(self) -> None:
        return None

    def compute(self, ctx: Context, *values: Any) -> Any:
        return self.fn(ctx)


@dataclass(frozen=True, eq=False, repr=False)
class Call(Node):
    """A function, or a named module, applied to refs and constants."""

    fn: Callable[..., Any] | None
    name: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...] = ()

    def __repr__(self) -> str:
        shown = [show(a) for a in self.args] + [f"{k}={show(v)}" for k, v in self.kwargs]
        if self.fn is None:
            return f"{self.name}({', '.join(shown)})"
        if self.fn is torch.detach:
            return f"stop_gradient({', '.join(shown)})"
        return f"call({', '.join([name_of(self.fn), *shown])})"

    @property
    def children(self) -> tuple[Ref, ...]:
        return tuple(refs_in((self.args, dict(self.kwargs))))

    @property
    def roots(self) -> frozenset[str] | None:
        below = super().roots
        return below if self.fn is not None or below is None else below | {self.name}

    def compute(self, ctx: Context, *values: Any) -> Any:
        given = iter(values)
        args = filled(self.args, given)
        kwargs = filled(dict(self.kwargs), given)
        fn = ctx.modules[self.name] if self.fn is None else self.fn
        return fn(*args, **kwargs)


@dataclass(frozen=True, eq=False, repr=False)
class Nested(Node):
    """A list, tuple or dict with refs in it."""

    tree: Any

    def __repr__(self) -> str:
        return repr(self.tree)

    @property
    def children(self) -> tuple[Ref, ...]:
        return tuple(refs_in(self.tree))

    def compute(self, ctx: Context, *values: Any) -> Any:
        return filled(self.tree, iter(values))


def refs_in(tree: Any) -> Iterator[Ref]:
    """The refs in nested tuples, lists and dicts, in order."""
    if isinstance(tree, Ref):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from refs_in(value)
    elif isinstance(tree, tuple | list):
        for value in tree:
            yield from refs_in(value)


def filled(tree: Any, values: Iterator[Any]) -> Any:
    """The tree with its refs replaced by values, in the order of `refs_in`."""
    if isinstance(tree, Ref):
        return next(values)
    if isinstance(tree, Mapping):
        return {key: filled(value, values) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)([filled(value, values) for value in tree])
    return tree


@dataclass(frozen=True)
class Module:
    """A named module of the objective; calling it on refs gives a ref."""

    name: str

    def __repr__(self) -> str:
        return f"module({self.name!r})"

    def __call__(self, *args: Any, **kwargs: Any) -> Ref:
        return Ref(Call(None, self.name, tuple(map(_operand, args)), tuple(kwargs.items())))


def module(name: str) -> Module:
    """A learnable adapter (or any module), named here and given to `Objective` by that name.

    Example:
      >>> project = module("project")
      >>> project(student.hidden_states[3])
      project(student.hidden_states[3])
    """
    return Module(name)


def call(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Ref:
    """A ref to `fn(*args, **kwargs)`, where any argument may be a ref.

    Positional callables count as refs (functions of the context); everything else is passed
    as it is.

    Example:
      >>> call(torch.softmax, student.logits, dim=-1)
      call(softmax, student.logits, dim=-1)
    """
    return Ref(Call(fn, "", tuple(map(_operand, args)), tuple(kwargs.items())))


def stop_gradient(value: Ref | Callable[[Context], Any]) -> Ref:
    """The same value, through which no gradient flows (self-distillation, say)."""
    return Ref(Call(torch.detach, "", (as_ref(value),)))


def as_ref(value: Any) -> Ref:
    """A ref from a ref, a callable of the context, or a tensor."""
    if isinstance(value, Ref):
        return value
    if isinstance(value, Tensor):
        return Ref(Constant(value))
    if isinstance(value, tuple | list | Mapping) and any(True for _ in refs_in(value)):
        return Ref(Nested(value))
    if callable(value) and not isinstance(value, Module):
        return Ref(Function(value))
    hint = (
        f"Call it on a ref: {value.name}(student.logits)."
        if isinstance(value, Module)
        else ("Pass a ref such as student.logits, a function of the context, or a tensor.")
    )
    raise TypeError(f"{value!r} is not a ref. {hint}")


def _operand(value: Any) -> Any:
    return (
        Ref(Function(value)) if callable(value) and not isinstance(value, Ref | Module) else value
    )
