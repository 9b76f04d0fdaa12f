"""Refs: pure functions from the context of a step to a value, written as ordinary code.

    student.hidden_states[3]          an output path
    student.tap("encoder.layer.2")    what a submodule returned (or was given: side="input")
    student.attention(3)              the attention map of one layer (transformers)
    student.param("lm_head.weight")   a parameter
    call(fn, ref, ...)                a function of other refs
    module("project")(ref)            a named module of the objective, applied to a ref
    lambda ctx: ctx["student"]        any callable of the context

A ref is immutable, prints as the code that made it, and compares and hashes by that code.
"""

from __future__ import annotations

import dataclasses
import keyword
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ._context import Context as Context
from ._errors import RefError
from ._paths import name_of, pick, show, show_key

ROOTS = ("student", "teacher", "batch")
"""Roots that `fkd` exports by name; any other is `fkd.ref(name)`."""


@dataclass(frozen=True, eq=False)
class Ref:
    """A pure function `Context -> value`. Attributes and indices of a ref are refs."""

    @property
    def children(self) -> tuple[Ref, ...]:
        """The refs whose values this one is computed from."""
        return ()

    @property
    def roots(self) -> frozenset[str] | None:
        """The names it depends on (models and `"batch"`); None if that cannot be known."""
        below = [child.roots for child in self.children]
        known = [r for r in below if r is not None]
        return None if len(known) < len(below) else frozenset[str]().union(*known)

    def compute(self, ctx: Context, *values: Any) -> Any:
        """The value, from the values of `children`."""
        raise NotImplementedError(f"{type(self).__name__} is abstract")

    def __call__(self, ctx: Context) -> Any:
        return self.compute(ctx, *(child(ctx) for child in self.children))

    def __getattr__(self, name: str) -> Ref:
        if name.startswith("_"):
            raise AttributeError(name)
        return Item(self, name)

    def __getitem__(self, key: Any) -> Ref:
        return Item(self, key)

    def __iter__(self) -> Iterator[Ref]:
        raise TypeError(f"{self!r} is a ref, not a sequence: its length is not known. Index it.")

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return False
        names = [f.name for f in dataclasses.fields(self)]
        return all(_same(vars(self)[n], vars(other)[n]) for n in names)

    def __hash__(self) -> int:
        return hash(repr(self))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a is b
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and bool(a == b)


@dataclass(frozen=True, eq=False, repr=False)
class Root(Ref):
    """A name given to `Objective`: a model's whole output, or the batch."""

    name: str

    def __repr__(self) -> str:
        return self.name if self.name in ROOTS else f"ref({self.name!r})"

    @property
    def roots(self) -> frozenset[str]:
        return frozenset([self.name])

    def compute(self, ctx: Context, *values: Any) -> Any:
        return ctx[self.name]


class ModelRoot(Root):
    """The root of a model, which has more to offer than its output.

    An output that is called like one of these methods is reached by `student["value"]`.
    """

    def tap(self, module: str, side: Literal["output", "input"] = "output") -> Ref:
        """What a submodule returned, or was given, in the forward pass.

        Args:
          module: dotted name, as in `named_modules()`; `""` is the model itself.
          side: `"output"`, or `"input"` for the first positional argument.

        The value is copied when it is captured, so that a later in-place operation (an
        `inplace=True` ReLU) does not change it. A module that runs several times gives the
        value of its last run.
        """
        return Tap(self.name, module, side)

    def param(self, name: str) -> Ref:
        """A parameter by its dotted name, as in `named_parameters()`; needs no forward pass."""
        return Param(self.name, name)

    def attention(self, layer: int, *, part: str | None = None) -> Ref:
        """Attention probabilities (after the softmax) of one layer, counted from 0.

        `[batch, heads, query, key]`. transformers models only. All other layers stay on the
        fused kernel. `part` is `"encoder"`, `"decoder"` or `"cross"` for encoder-decoders.
        """
        return Capture(self.name, "attention", layer, part)

    def attention_scores(self, layer: int, *, part: str | None = None) -> Ref:
        """Scaled attention scores (before mask and softmax) of one layer, as in TinyBERT."""
        return Capture(self.name, "attention_scores", layer, part)

    def query(self, layer: int, *, part: str | None = None) -> Ref:
        """Query states of one layer, `[batch, heads, length, head_dim]`."""
        return Capture(self.name, "query", layer, part)

    def key(self, layer: int, *, part: str | None = None) -> Ref:
        """Key states of one layer, `[batch, key_value_heads, length, head_dim]`."""
        return Capture(self.name, "key", layer, part)

    def value(self, layer: int, *, part: str | None = None) -> Ref:
        """Value states of one layer, `[batch, key_value_heads, length, head_dim]`."""
        return Capture(self.name, "value", layer, part)


@dataclass(frozen=True, eq=False, repr=False)
class Item(Ref):
    """A field, key or index of another ref's value."""

    parent: Ref
    item: Any

    def __repr__(self) -> str:
        if isinstance(self.item, str) and _is_attribute(self.parent, self.item):
            return f"{self.parent!r}.{self.item}"
        keys = self.item if isinstance(self.item, tuple) else (self.item,)
        return f"{self.parent!r}[{', '.join(map(show_key, keys))}]"

    @property
    def children(self) -> tuple[Ref, ...]:
        return (self.parent,)

    def compute(self, ctx: Context, *values: Any) -> Any:
        return pick(values[0], self.item, self)


def _is_attribute(parent: Ref, name: str) -> bool:
    """Whether `parent.name` is the ref to that output, and not something of the ref itself."""
    own = hasattr(type(parent), name) or name in vars(parent)
    return name.isidentifier() and not (own or name.startswith("_") or keyword.iskeyword(name))


@dataclass(frozen=True, eq=False, repr=False)
class Tap(Ref):
    """What a submodule returned or was given."""

    root: str
    module: str
    side: Literal["output", "input"] = "output"

    def __repr__(self) -> str:
        side = "" if self.side == "output" else f", {self.side!r}"
        return f"{Root(self.root)!r}.tap({self.module!r}{side})"

    @property
    def roots(self) -> frozenset[str]:
        return frozenset([self.root])

    def compute(self, ctx: Context, *values: Any) -> Any:
        try:
            return ctx.taps[self.root][self.module, self.side]
        except KeyError:
            raise RefError(f"{self!r}: the forward pass did not run this module.") from None


@dataclass(frozen=True, eq=False, repr=False)
class Capture(Ref):
    """An inner value of one attention layer of a transformers model."""

    root: str
    kind: str
    layer: int
    part: str | None = None

    def __repr__(self) -> str:
        part = "" if self.part is None else f", part={self.part!r}"
        return f"{Root(self.root)!r}.{self.kind}({self.layer!r}{part})"

    @property
    def roots(self) -> frozenset[str]:
        return frozenset([self.root])

    def compute(self, ctx: Context, *values: Any) -> Any:
        try:
            return ctx.taps[self.root][self.kind, self.layer, self.part]
        except KeyError:
            raise RefError(f"{self!r}: the forward pass did not run this layer.") from None


@dataclass(frozen=True, eq=False, repr=False)
class Param(Ref):
    """A parameter of a model."""

    root: str
    parameter: str

    def __repr__(self) -> str:
        return f"{Root(self.root)!r}.param({self.parameter!r})"

    @property
    def roots(self) -> frozenset[str]:
        return frozenset([self.root])

    def compute(self, ctx: Context, *values: Any) -> Any:
        return ctx.params[self.root][self.parameter]


@dataclass(frozen=True, eq=False, repr=False)
class Constant(Ref):
    """A tensor that does not depend on the step."""

    tensor: Tensor

    def __repr__(self) -> str:
        return f"<tensor {tuple(self.tensor.shape)} at {id(self.tensor):#x}>"

    def compute(self, ctx: Context, *values: Any) -> Any:
        return self.tensor


@dataclass(frozen=True, eq=False, repr=False)
class Function(Ref):
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
class Call(Ref):
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
        everything = (*self.args, *(v for _, v in self.kwargs))
        return tuple(a for a in everything if isinstance(a, Ref))

    @property
    def roots(self) -> frozenset[str] | None:
        below = super().roots
        return below if self.fn is not None or below is None else below | {self.name}

    def compute(self, ctx: Context, *values: Any) -> Any:
        given = iter(values)
        args = [next(given) if isinstance(a, Ref) else a for a in self.args]
        kwargs = {k: next(given) if isinstance(v, Ref) else v for k, v in self.kwargs}
        fn = ctx.modules[self.name] if self.fn is None else self.fn
        return fn(*args, **kwargs)


@dataclass(frozen=True)
class Module:
    """A named module of the objective; calling it on refs gives a ref."""

    name: str

    def __repr__(self) -> str:
        return f"module({self.name!r})"

    def __call__(self, *args: Any, **kwargs: Any) -> Ref:
        return Call(None, self.name, tuple(map(_operand, args)), tuple(kwargs.items()))


def ref(name: str) -> ModelRoot:
    """The root of a model (or of `"batch"`) by the name that `Objective` is given.

    Example:
      >>> ref("roberta").hidden_states[3]
      ref('roberta').hidden_states[3]
    """
    return ModelRoot(name)


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
    return Call(fn, "", tuple(map(_operand, args)), tuple(kwargs.items()))


def stop_gradient(value: Ref | Callable[[Context], Any]) -> Ref:
    """The same value, through which no gradient flows (self-distillation, say)."""
    return Call(torch.detach, "", (as_ref(value),))


def as_ref(value: Any) -> Ref:
    """A ref from a ref, a callable of the context, or a tensor."""
    if isinstance(value, Ref):
        return value
    if isinstance(value, Tensor):
        return Constant(value)
    if callable(value) and not isinstance(value, Module):
        return Function(value)
    hint = (
        f"Call it on a ref: {value.name}(student.logits)."
        if isinstance(value, Module)
        else ("Pass a ref such as student.logits, a function of the context, or a tensor.")
    )
    raise TypeError(f"{value!r} is not a ref. {hint}")


def _operand(value: Any) -> Any:
    return Function(value) if callable(value) and not isinstance(value, Ref | Module) else value


def walk(value: Ref) -> Iterator[Ref]:
    """The ref and everything it is computed from, children first."""
    for child in value.children:
        yield from walk(child)
    yield value


def output_path(value: Ref) -> tuple[str, tuple[Any, ...]] | None:
    """`(root, keys)` of an output path such as `student.hidden_states[3]`, else None."""
    keys: list[Any] = []
    while isinstance(value, Item):
        keys.append(value.item)
        value = value.parent
    return (value.name, tuple(reversed(keys))) if isinstance(value, Root) else None


student = ModelRoot("student")
teacher = ModelRoot("teacher")
batch = Root("batch")
