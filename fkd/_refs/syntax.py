"""The operators of refs: which there are, how strongly they bind, and what cannot be one."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Callable
from typing import Any, NoReturn

from torch import Tensor, nn

ATOM = 10
"""How strongly names, calls, paths and numbers bind."""

UNARY = 8

BINARY: dict[str, tuple[int, Callable[[Any, Any], Any]]] = {
    "==": (1, operator.eq),
    "!=": (1, operator.ne),
    "<": (1, operator.lt),
    "<=": (1, operator.le),
    ">": (1, operator.gt),
    ">=": (1, operator.ge),
    "|": (2, operator.or_),
    "^": (3, operator.xor),
    "&": (4, operator.and_),
    "+": (6, operator.add),
    "-": (6, operator.sub),
    "*": (7, operator.mul),
    "/": (7, operator.truediv),
    "//": (7, operator.floordiv),
    "%": (7, operator.mod),
    "@": (7, operator.matmul),
    "**": (9, operator.pow),
}
"""How strongly a binary operator binds, and what it does."""

PREFIX: dict[str, Callable[[Any], Any]] = {
    "-": operator.neg,
    "+": operator.pos,
    "~": operator.invert,
    "abs": abs,
}

OF_TENSORS = {
    **{"add": "+", "sub": "-", "mul": "*", "div": "/", "matmul": "@", "pow": "**"},
    **{"__floordiv__": "//", "remainder": "%", "__and__": "&", "__or__": "|", "__xor__": "^"},
    **{"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="},
}
"""The method of a tensor that its operator calls -> the operator."""

IN_PLACE = frozenset(
    ["__setitem__", "__set__"]
    + [f"__i{n}__" for n in ("add", "sub", "mul", "truediv", "div", "floordiv", "mod", "pow")]
    + [f"__i{n}__" for n in ("matmul", "and", "or", "xor")]
)

HAND_OVER = (
    "A ref has a value only when a step runs. Hand a function over instead of calling it: "
    "fkd.term(kl, student.logits, teacher.logits) for a loss, fkd.module('name')(student.logits) "
    "for a module of the objective, fkd.call(fn, student.logits) for any other function."
)

USE_MODULE = (
    "What depends on training or evaluation mode, or keeps statistics, belongs to the objective: "
    "give it name=fkd.trainable(module), and call it: fkd.module('name')(student.logits)."
)

NEVER_TRAINED = (
    "A parameter that stands in a ref is never trained. Give its module to the objective, "
    "name=fkd.trainable(module), and call it by that name: fkd.module('name')(student.logits)."
)


def joined(symbol: str, *operands: tuple[str, int]) -> str:
    """An operation as code, from its operands as code and how strongly each binds."""
    if len(operands) == 1:
        code, strength = operands[0]
        if symbol == "abs":
            return f"abs({code})"
        return f"{symbol}{code if strength >= UNARY else f'({code})'}"
    strength = BINARY[symbol][0]
    least = [strength, strength + 1]  # operators of one strength are read from the left,
    if strength == 1:
        least = [2, 2]  # comparisons are not chained,
    elif symbol == "**":
        least = [ATOM, UNARY]  # and powers are read from the right
    sides = [c if s >= n else f"({c})" for (c, s), n in zip(operands, least, strict=True)]
    return f" {symbol} ".join(sides)


def strength_of(symbol: str, count: int) -> int:
    """How strongly an operation of `count` operands binds."""
    if count == 1:
        return ATOM if symbol == "abs" else UNARY
    return BINARY[symbol][0]


class Syntax:
    """What Python writes with symbols: operations give refs, everything else an error."""

    __array_ufunc__ = None  # NumPy leaves `array * ref` to the ref

    def _operation(self, symbol: str, *operands: Any) -> Any:
        """A ref to the operation on refs, numbers and tensors."""
        raise TypeError(f"{type(self).__name__} has no operations.")

    def __add__(self, other: Any) -> Any:
        return self._operation("+", self, other)

    def __radd__(self, other: Any) -> Any:
        return self._operation("+", other, self)

    def __sub__(self, other: Any) -> Any:
        return self._operation("-", self, other)

    def __rsub__(self, other: Any) -> Any:
        return self._operation("-", other, self)

    def __mul__(self, other: Any) -> Any:
        return self._operation("*", self, other)

    def __rmul__(self, other: Any) -> Any:
        return self._operation("*", other, self)

    def __truediv__(self, other: Any) -> Any:
        return self._operation("/", self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return self._operation("/", other, self)

    def __floordiv__(self, other: Any) -> Any:
        return self._operation("//", self, other)

    def __rfloordiv__(self, other: Any) -> Any:
        return self._operation("//", other, self)

    def __mod__(self, other: Any) -> Any:
        return self._operation("%", self, other)

    def __rmod__(self, other: Any) -> Any:
        return self._operation("%", other, self)

    def __matmul__(self, other: Any) -> Any:
        return self._operation("@", self, other)

    def __rmatmul__(self, other: Any) -> Any:
        return self._operation("@", other, self)

    def __pow__(self, other: Any) -> Any:
        return self._operation("**", self, other)

    def __rpow__(self, other: Any) -> Any:
        return self._operation("**", other, self)

    def __and__(self, other: Any) -> Any:
        return self._operation("&", self, other)

    def __rand__(self, other: Any) -> Any:
        return self._operation("&", other, self)

    def __or__(self, other: Any) -> Any:
        return self._operation("|", self, other)

    def __ror__(self, other: Any) -> Any:
        return self._operation("|", other, self)

    def __xor__(self, other: Any) -> Any:
        return self._operation("^", self, other)

    def __rxor__(self, other: Any) -> Any:
        return self._operation("^", other, self)

    def __lt__(self, other: Any) -> Any:
        return self._operation("<", self, other)

    def __le__(self, other: Any) -> Any:
        return self._operation("<=", self, other)

    def __gt__(self, other: Any) -> Any:
        return self._operation(">", self, other)

    def __ge__(self, other: Any) -> Any:
        return self._operation(">=", self, other)

    def __neg__(self) -> Any:
        return self._operation("-", self)

    def __pos__(self) -> Any:
        return self._operation("+", self)

    def __invert__(self) -> Any:
        return self._operation("~", self)

    def __abs__(self) -> Any:
        return self._operation("abs", self)

    def __bool__(self) -> bool:
        raise TypeError(
            f"{self!r} is a ref: Python cannot decide by it (if, and, or, not, a < b < c). Masks "
            "are combined by &, | and ~; a choice is torch.where(mask, a, b) or "
            f"torch.maximum(a, b). {HAND_OVER}"
        )

    def __len__(self) -> int:
        raise TypeError(f"{self!r} is a ref: its length is not known. {HAND_OVER}")

    def __contains__(self, value: object) -> bool:
        raise TypeError(f"{self!r} is a ref: what is in it is not known. {HAND_OVER}")

    def __float__(self) -> float:
        self._no_number()

    def __int__(self) -> int:
        self._no_number()

    def __index__(self) -> int:
        self._no_number()

    def _no_number(self) -> NoReturn:
        raise TypeError(f"{self!r} is a ref, not a number yet. {HAND_OVER}")


def is_operand(value: Any) -> bool:
    """Whether a value may stand beside an operator, the refs themselves apart."""
    if isinstance(value, Tensor):
        return not is_trained(value)
    if isinstance(value, bool):
        return False  # what == says of two refs
    return isinstance(value, numbers.Number)


def as_python(value: Any) -> Any:
    """A NumPy number as Python's own, which prints as code."""
    item = getattr(value, "item", None) if isinstance(value, numbers.Number) else None
    return value if item is None else item()


def depends_on_mode(name: str, args: tuple[Any, ...]) -> bool:
    """Whether a torch function, called on a ref, is that of a module with a mode or statistics."""
    statistics = any(isinstance(x, Tensor) for x in args[1:3])
    return "dropout" in name or (name in ("batch_norm", "instance_norm") and statistics)


def is_trained(value: Any) -> bool:
    """Whether a value is a parameter that someone means to train."""
    return isinstance(value, nn.Parameter) and value.requires_grad


def operand_hint(value: Any) -> str:
    """How to write what is meant by a value that cannot stand beside an operator."""
    if isinstance(value, bool):
        return (
            "== and != between two refs tell whether they are the same code. To compare their "
            "values: fkd.call(torch.eq, a, b) or fkd.call(torch.ne, a, b)."
        )
    if is_trained(value):
        return NEVER_TRAINED
    if hasattr(value, "__array__"):
        return "Make it a tensor: torch.as_tensor(array)."
    if callable(value):
        return "Apply the function first: fkd.call(fn, student.logits)."
    return "A ref, a number or a tensor is expected; for all else: fkd.call(fn, a, b)."


def in_place(code: str, name: str) -> TypeError:
    """The refusal of what would change a value that other refs read."""
    return TypeError(
        f"{code} changes a tensor in place, and the values of refs are never changed: other "
        f"terms read them. Use {name.strip('_') or name} without in-place."
    )
