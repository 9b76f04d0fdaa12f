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
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, overload

from torch import Tensor

from .._errors import RefError
from .context import Context as Context
from .paths import pick, show_key

ROOTS = ("student", "teacher", "batch")
"""Roots that `fkd` exports by name; any other is `fkd.ref(name)`."""


class Node:
    """What a ref says: a kind of source, or of computation, with its fields.

    A ref shows none of this to the user, so that every output can be reached by its name;
    the rooms of fkd read it by `node(ref)`, `children(ref)`, `roots(ref)`.
    """

    @property
    def children(self) -> tuple[Ref, ...]:
        """The refs whose values this one is computed from."""
        return ()

    @property
    def roots(self) -> frozenset[str] | None:
        """The names it depends on (models and `"batch"`); None if that cannot be known."""
        below = [node(child).roots for child in self.children]
        known = [r for r in below if r is not None]
        return None if len(known) < len(below) else frozenset[str]().union(*known)

    def compute(self, ctx: Context, *values: Any) -> Any:
        """The value, from the values of `children`."""
        raise TypeError(f"{type(self).__name__} says nothing to compute.")

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other) or not dataclasses.is_dataclass(self):
            return False
        names = [f.name for f in dataclasses.fields(self)]
        return all(_same(vars(self)[n], vars(other)[n]) for n in names)

    def __hash__(self) -> int:
        return hash(repr(self))


@dataclass(frozen=True, eq=False, repr=False)
class Ref:
    """A pure function `Context -> value`. Attributes and indices of a ref are refs.

    A ref has no public attributes of its own: `batch.name`, `batch.value` and `batch.roots` are
    the fields of the batch that are called so.
    """

    _node: Node

    def __repr__(self) -> str:
        return repr(self._node)

    def __call__(self, ctx: Context) -> Any:
        return self._node.compute(ctx, *(child(ctx) for child in self._node.children))

    def __getattr__(self, name: str) -> Ref:
        if name.startswith("_"):
            raise AttributeError(name)
        return Ref(Item(self, name))

    def __getitem__(self, key: Any) -> Ref:
        return Ref(Item(self, key))

    def __iter__(self) -> Iterator[Ref]:
        raise TypeError(f"{self!r} is a ref, not a sequence: its length is not known. Index it.")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ref) and self._node == node(other)

    def __hash__(self) -> int:
        return hash(self._node)


def node(ref: Ref) -> Node:
    """What a ref says: a `Root`, `Item`, `Tap`, `Capture`, `Param`, or a node of `derived`."""
    return ref._node  # pyright: ignore[reportPrivateUsage]  the one door to it


def children(ref: Ref) -> tuple[Ref, ...]:
    """The refs whose values this one is computed from."""
    return node(ref).children


def roots(ref: Ref) -> frozenset[str] | None:
    """The names that a ref depends on (models and `"batch"`); None if that cannot be known."""
    return node(ref).roots


def compute(ref: Ref, ctx: Context, *values: Any) -> Any:
    """The value of a ref, from the values of its children."""
    return node(ref).compute(ctx, *values)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a is b
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and bool(a == b)


@dataclass(frozen=True, eq=False, repr=False)
class Root(Node):
    """A name given to `Objective`: a model's whole output, or the batch."""

    name: str

    def __repr__(self) -> str:
        return self.name if self.name in ROOTS else f"ref({self.name!r})"

    @property
    def roots(self) -> frozenset[str]:
        return frozenset([self.name])

    def compute(self, ctx: Context, *values: Any) -> Any:
        return ctx[self.name]


class ModelRef(Ref):
    """The ref of a model, which has more to offer than its output.

    An output that is called like one of these methods is reached by `student["value"]`.
    """

    @property
    def _name(self) -> str:
        assert isinstance(self._node, Root)
        return self._node.name

    def tap(self, module: str, side: Literal["output", "input"] = "output") -> Ref:
        """What a submodule returned, or was given, in the forward pass.

        Args:
          module: dotted name, as in `named_modules()`; `""` is the model itself.
          side: `"output"`, or `"input"` for the first positional argument.

        The value is copied when it is captured, so that a later in-place operation (an
        `inplace=True` ReLU) does not change it. A module that runs several times gives the
        value of its last run.
        """
        return Ref(Tap(self._name, module, side))

    def param(self, name: str) -> Ref:
        """A parameter by its dotted name, as in `named_parameters()`; needs no forward pass."""
        return Ref(Param(self._name, name))

    def attention(self, layer: int, *, part: str | None = None) -> Ref:
        """Attention probabilities (after the softmax) of one layer, counted from 0.

        `[batch, heads, query, key]`. transformers models only. All other layers stay on the
        fused kernel. `part` is `"encoder"`, `"decoder"` or `"cross"` for encoder-decoders.
        """
        return Ref(Capture(self._name, "attention", layer, part))

    def attention_scores(self, layer: int, *, part: str | None = None) -> Ref:
        """Scaled attention scores of one layer, of which the softmax is taken, as in TinyBERT.

        `[batch, heads, query, key]`. Pairs that the model masks hold about the lowest number of
        the dtype; the losses of `fkd.losses` leave them out.
        """
        return Ref(Capture(self._name, "attention_scores", layer, part))

    def query(self, layer: int, *, part: str | None = None) -> Ref:
        """Query states of one layer, `[batch, heads, length, head_dim]`."""
        return Ref(Capture(self._name, "query", layer, part))

    def key(self, layer: int, *, part: str | None = None) -> Ref:
        """Key states of one layer, `[batch, key_value_heads, length, head_dim]`."""
        return Ref(Capture(self._name, "key", layer, part))

    def value(self, layer: int, *, part: str | None = None) -> Ref:
        """Value states of one layer, `[batch, key_value_heads, length, head_dim]`."""
        return Ref(Capture(self._name, "value", layer, part))


@dataclass(frozen=True, eq=False, repr=False)
class Item(Node):
    """A field, key or index of another ref's value."""

    parent: Ref
    key: Any

    def __repr__(self) -> str:
        if isinstance(self.key, str) and _is_attribute(self.parent, self.key):
            return f"{self.parent!r}.{self.key}"
        keys = self.key if isinstance(self.key, tuple) else (self.key,)
        return f"{self.parent!r}[{', '.join(map(show_key, keys))}]"

    @property
    def children(self) -> tuple[Ref, ...]:
        return (self.parent,)

    def compute(self, ctx: Context, *values: Any) -> Any:
        return pick(values[0], self.key, self)


def _is_attribute(parent: Ref, name: str) -> bool:
    """Whether `parent.name` is the ref to that output, and not something of the ref itself."""
    taken = hasattr(type(parent), name) or name.startswith("_") or keyword.iskeyword(name)
    return name.isidentifier() and not taken


@dataclass(frozen=True, eq=False, repr=False)
class Tap(Node):
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
class Capture(Node):
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
class Param(Node):
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


@overload
def ref(name: Literal["batch"]) -> Ref: ...  # pyright: ignore[reportOverlappingOverload]


@overload
def ref(name: str) -> ModelRef: ...


def ref(name: str) -> Ref:
    """The root of a model (or of `"batch"`) by the name that `Objective` is given.

    Example:
      >>> ref("roberta").hidden_states[3]
      ref('roberta').hidden_states[3]
    """
    return batch if name == "batch" else ModelRef(Root(name))


def walk(value: Ref) -> Iterator[Ref]:
    """The ref and everything it is computed from, children first."""
    for child in children(value):
        yield from walk(child)
    yield value


def output_path(value: Ref) -> tuple[str, tuple[Any, ...]] | None:
    """`(root, keys)` of an output path such as `student.hidden_states[3]`, else None."""
    keys: list[Any] = []
    part = node(value)
    while isinstance(part, Item):
        keys.append(part.key)
        part = node(part.parent)
    return (part.name, tuple(reversed(keys))) if isinstance(part, Root) else None


student = ModelRef(Root("student"))
teacher = ModelRef(Root("teacher"))
batch = Ref(Root("batch"))
