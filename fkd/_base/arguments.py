"""Functions of many arguments: these are listed once, as the fields of a record."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
A = TypeVar("A")
T = TypeVar("T")


def called_with(make: Callable[P, A]) -> Callable[[Callable[[A], T]], Callable[P, T]]:
    """Gives a function of one record the signature of that record, for callers, editors and
    `help`.

    Args:
      make: the record: a frozen dataclass, which checks what it is given.

    Example:
      >>> from dataclasses import dataclass
      >>> @dataclass(frozen=True)
      ... class Point:
      ...     x: float
      ...     y: float = 0.0
      >>> @called_with(Point)
      ... def length(point: Point) -> float:
      ...     return (point.x**2 + point.y**2) ** 0.5
      >>> length(3.0, y=4.0), inspect.signature(length)
      (5.0, <Signature (x: 'float', y: 'float' = 0.0) -> 'float'>)
    """

    def decorate(function: Callable[[A], T]) -> Callable[P, T]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            return function(make(*args, **kwargs))

        result = inspect.signature(function).return_annotation
        signature = inspect.signature(make).replace(return_annotation=result)
        setattr(call, "__signature__", signature)  # noqa: B010  a function has no such field
        return call

    return decorate
