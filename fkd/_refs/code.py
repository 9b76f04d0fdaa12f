"""Refs as immutable code: what each one says (its node), and how Python's syntax makes one.

`Ref` is all that a user sees; it has no public attribute, so that every output can be reached
by its name. What it says stands in a `Node`, which the rooms of fkd read.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._base.errors import RefError
from .context import Context
from .paths import is_attribute, method_of, name_of, pick, show, show_key
from .syntax import (
    ATOM,
    BINARY,
    HAND_OVER,
    IN_PLACE,
    OF_TENSORS,
    PREFIX,
    UNARY,
    USE_MODULE,
    Syntax,
    as_python,
    depends_on_mode,
    in_place,
    is_operand,
    joined,
    operand_hint,
    strength_of,
)
from .trees import arguments, hashed, leaves, mapped, plain, same


class Node:
    """What a ref says: a kind of source, or of computation, with its fields."""

    @property
    def children(self) -> tuple[Ref, ...]:
        """The refs whose values this one is computed from, as they stand in the fields."""
        return tuple(refs_in(self._fields()))

    @property
    def roots(self) -> frozenset[str] | None:
        """The names it depends on (models and `"batch"`); None if that cannot be known."""
        below = [node(child).roots for child in self.children]
        known = [r for r in below if r is not None]
        return None if len(known) < len(below) else frozenset[str]().union(*known)

    @property
    def strength(self) -> int:
        """How strongly its code binds; see `syntax`."""
        return ATOM

    def compute(self, ctx: Context, *values: Any) -> Any:
        """The value, from the values of `children`."""
        raise TypeError(f"{type(self).__name__} says nothing to compute.")

    def _fields(self) -> tuple[Any, ...]:
        names = [f.name for f in dataclasses.fields(self)] if dataclasses.is_dataclass(self) else []
        return tuple(vars(self)[name] for name in names)

    @functools.cached_property
    def _hash(self) -> int:
        return hash((type(self).__name__, hashed(self._fields())))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Node) or type(self) is not type(other):
            return False
        return same(self._fields(), other._fields())

    def __hash__(self) -> int:
        return self._hash

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "_hash"}  # another process has others


class Ref(Syntax):
    """A value of a step that is not there yet, as code: a pure function `Context -> value`.

    Attributes, indices, operations, methods and torch functions of refs are refs:

        student.hidden_states[3]        (student.logits + teacher.logits) / 2
        batch.labels != -100            student.logits.mean(-1)
        torch.softmax(student.logits, -1)

    A ref prints as the code that makes it, and two refs are equal if they are the same code:
    `==` and `!=` *between two refs* are a bool, so that refs can be kept in dicts and sets.
    Beside a number or a tensor they are a ref, as all other comparisons are. The values of two
    refs are compared by `fkd.call(torch.eq, a, b)`.

    It has no public attributes: `batch.name`, `batch.value` and `batch.roots` are the fields of
    the batch that are called so. The refs of models, `student`, `teacher` and `fkd.ref(name)`, have
    the methods of `ModelRef` besides, such as `student.tap("encoder.layer.2")`.
    """

    _node: Node

    def __init__(self, node: Node) -> None:
        vars(self)["_node"] = node

    def __repr__(self) -> str:
        return repr(self._node)

    def __hash__(self) -> int:
        return hash(self._node)

    def __eq__(self, other: object) -> Any:
        if not isinstance(other, Ref):
            return self._compared("==", other)
        return self is other or self._node == node(other)

    def __ne__(self, other: object) -> Any:
        return not self == other if isinstance(other, Ref) else self._compared("!=", other)

    def _compared(self, symbol: str, other: object) -> Any:
        if is_operand(other) or isinstance(other, bool):
            return Ref(Operation(symbol, (self, as_python(other))))
        if hasattr(other, "__array__"):
            return self._operation(symbol, self, other)  # refuses it
        return symbol == "!="

    def _operation(self, symbol: str, *operands: Any) -> Ref:
        for x in operands:
            if not isinstance(x, Ref) and not is_operand(x):
                code = joined(symbol, *map(_code, operands))
                raise TypeError(f"{code}: {show(x)} cannot stand here. {operand_hint(x)}")
        return Ref(Operation(symbol, tuple(map(as_python, operands))))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The value in a context; or, for `ref.name(...)`, a ref to the method's value."""
        if len(args) == 1 and not kwargs and isinstance(args[0], Context):
            return self._node.compute(args[0], *(child(args[0]) for child in self._node.children))
        item = self._node
        if not isinstance(item, Item) or not isinstance(item.key, str):
            raise TypeError(
                f"{self!r} is a ref, which is not called: only its methods are, such as "
                f"{self!r}.mean(-1). To apply a function, fkd.call(fn, {self!r}); a module of "
                "the objective, fkd.module('name')(...)."
            )
        return item.parent._method(item.key, *args, **kwargs)

    def _method(self, name: str, *args: Any, **kwargs: Any) -> Ref:
        """A ref to what a method of the value gives."""
        if name.endswith("_"):
            raise in_place(f"{self!r}.{name}", name)
        return Ref(Method(self, name, *arguments(name, args, kwargs)))

    def __getattr__(self, name: str) -> Ref:
        if name.startswith("_"):
            raise AttributeError(f"A ref has no {name!r}. An output called so: ref[{name!r}].")
        return Ref(Item(self, name))

    def __getitem__(self, key: Any) -> Ref:
        return Ref(Item(self, plain(key)))

    def __setattr__(self, name: str, value: Any) -> None:
        raise dataclasses.FrozenInstanceError(
            f"{self!r}.{name} = ...: refs never change. Give the new ref a name of its own: "
            f"{name} = {self!r}.{name} / 2."
        )

    def __setitem__(self, key: Any, value: Any) -> None:
        del key, value
        raise TypeError(
            f"{self!r} is a ref, and values are never changed in place. "
            f"A changed copy: torch.where(mask, a, b), or fkd.call(fn, {self!r})."
        )

    def __iter__(self) -> Iterator[Ref]:
        raise TypeError(
            f"{self!r} is a ref, not a sequence: its length is not known. Index it. {HAND_OVER}"
        )

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Ref:
        """A torch function of refs is the ref `fkd.call(function, ...)`."""
        del cls, types
        name, kwargs = name_of(func), kwargs or {}
        if depends_on_mode(name, args):
            raise TypeError(f"{name} is given a ref. {USE_MODULE}")
        if kwargs.get("inplace") or name in IN_PLACE or (name[-1] == "_" != name[-2]):
            raise in_place(name, name)
        if "Tensor" in getattr(func, "__qualname__", "") and len(args) == 2 and not kwargs:
            if name == "__getitem__":
                return as_constant(args[0])[args[1]]
            if name in OF_TENSORS:
                return Ref(Operation(OF_TENSORS[name], tuple(args)))
        return Ref(Call(func, "", *arguments(name, args, kwargs)))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._node,)


def node(ref: Ref) -> Node:
    """What a ref says: a `Root`, `Item`, `Tap`, `Capture`, `Param`, or another `Node`."""
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


def walk(value: Ref) -> Iterator[Ref]:
    """The ref and everything it is computed from, each once, children first."""
    seen: set[Ref] = set()

    def below(ref: Ref) -> Iterator[Ref]:
        if ref not in seen:
            seen.add(ref)
            for child in children(ref):
                yield from below(child)
            yield ref

    return below(value)


def refs_in(tree: Any) -> Iterator[Ref]:
    """The refs in nested tuples, lists, dicts and slices, in order."""
    return (leaf for leaf in leaves(tree) if isinstance(leaf, Ref))


def filled(tree: Any, values: Iterator[Any]) -> Any:
    """The tree with its refs replaced by values, in the order of `refs_in`."""
    return mapped(lambda leaf: next(values) if isinstance(leaf, Ref) else leaf, tree)


def _code(value: Any) -> tuple[str, int]:
    """A value as code, and how strongly that binds."""
    if isinstance(value, Ref):
        return repr(value), node(value).strength
    negative = isinstance(value, int | float) and repr(value).startswith("-")
    return show(value), UNARY if negative else ATOM


def operand(value: Any) -> str:
    """The code of a value, as one part of a larger expression."""
    code, strength = _code(value)
    return code if strength == ATOM else f"({code})"


def listed(args: tuple[Any, ...], kwargs: tuple[tuple[str, Any], ...]) -> str:
    """Arguments as they stand between the parentheses of a call."""
    return ", ".join([*map(show, args), *(f"{k}={show(v)}" for k, v in kwargs)])


@dataclass(frozen=True, eq=False, repr=False)
class Constant(Node):
    """A tensor that does not depend on the step."""

    tensor: Tensor

    def __repr__(self) -> str:
        return f"<tensor {tuple(self.tensor.shape)} at {id(self.tensor):#x}>"

    def compute(self, ctx: Context, *values: Any) -> Any:
        return self.tensor


def as_constant(value: Any) -> Ref:
    """The ref itself, or one to a tensor."""
    return value if isinstance(value, Ref) else Ref(Constant(value))


ROOTS = ("student", "teacher", "batch")
"""Roots that `fkd` exports by name; any other is `fkd.ref(name)`."""


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


@dataclass(frozen=True, eq=False, repr=False)
class Item(Node):
    """A field, key or index of another ref's value; refs may stand in the index."""

    parent: Ref
    key: Any

    def __repr__(self) -> str:
        if isinstance(self.key, str) and is_attribute(self.key):
            return f"{operand(self.parent)}.{self.key}"
        keys = self.key if isinstance(self.key, tuple) and self.key else (self.key,)
        comma = "," if isinstance(self.key, tuple) and len(self.key) == 1 else ""
        return f"{operand(self.parent)}[{', '.join(map(show_key, keys))}{comma}]"

    def compute(self, ctx: Context, *values: Any) -> Any:
        whole = isinstance(root := node(self.parent), Root) and root.name != "batch"
        bare = f"{self.parent!r}.logits" if whole else repr(self.parent)
        offered = isinstance(self.key, str) and hasattr(type(self.parent), self.key)
        key = filled(self.key, iter(values[1:]))
        return pick(values[0], key, self, bare=bare, offered=offered)


@dataclass(frozen=True, eq=False, repr=False)
class Method(Node):
    """A method of another ref's value."""

    parent: Ref
    name: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]

    def __repr__(self) -> str:
        return f"{operand(self.parent)}.{self.name}({listed(self.args, self.kwargs)})"

    def compute(self, ctx: Context, *values: Any) -> Any:
        method = method_of(values[0], self.name, self.parent)
        args, kwargs = filled((self.args, self.kwargs), iter(values[1:]))
        return method(*args, **dict(kwargs))


@dataclass(frozen=True, eq=False, repr=False)
class Operation(Node):
    """An operator between refs, numbers and tensors."""

    symbol: str
    operands: tuple[Any, ...]

    def __repr__(self) -> str:
        return joined(self.symbol, *map(_code, self.operands))

    @property
    def strength(self) -> int:
        return strength_of(self.symbol, len(self.operands))

    def compute(self, ctx: Context, *values: Any) -> Any:
        operands = filled(self.operands, iter(values))
        if len(operands) == 2:
            return BINARY[self.symbol][1](*operands)
        if self.symbol == "~" and getattr(operands[0], "dtype", torch.bool) is not torch.bool:
            raise RefError(
                f"{self!r}: ~ of {operands[0].dtype} inverts bits (~1 is -2). "
                f"Compare it: {operand(self.operands[0])} == 0."
            )
        return PREFIX[self.symbol](*operands)


@dataclass(frozen=True, eq=False, repr=False)
class Call(Node):
    """A function, or a named module, applied to refs and constants."""

    fn: Any
    name: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...] = ()

    def __repr__(self) -> str:
        shown = listed(self.args, self.kwargs)
        if self.fn is None:
            return f"{self.name}({shown})"
        if self.fn is torch.detach and len(self.args) == 1:
            return f"stop_gradient({shown})"
        return f"call({name_of(self.fn)}{', ' if shown else ''}{shown})"

    @property
    def roots(self) -> frozenset[str] | None:
        below = super().roots
        return below if self.fn is not None or below is None else below | {self.name}

    def compute(self, ctx: Context, *values: Any) -> Any:
        args, kwargs = filled((self.args, self.kwargs), iter(values))
        fn = ctx.modules[self.name] if self.fn is None else self.fn
        return fn(*args, **dict(kwargs))
