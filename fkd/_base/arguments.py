"""Functions of many arguments: these are listed once, as the fields of a record."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import ParamSpec, TypeVar

import torch

from .errors import nearest

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
            try:
                record = make(*args, **kwargs)
            except TypeError:
                if not torch.compiler.is_compiling():  # which cannot trace it
                    _expect_bound(function.__name__, bound, args, kwargs)
                raise
            return function(record)

        bound = inspect.signature(make)
        result = inspect.signature(function).return_annotation
        signature = bound.replace(return_annotation=result)
        setattr(call, "__signature__", signature)  # noqa: B010  a function has no such field
        return call

    return decorate


def _expect_bound(
    name: str, signature: inspect.Signature, args: Iterable[object], kwargs: Mapping[str, object]
) -> None:
    """Refuse a call that does not fit a signature.

    Raises:
      TypeError: with the name of the function that was called.
    """
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{name}: {error}. {_meant(signature, kwargs)}") from None


def _meant(signature: inspect.Signature, kwargs: Iterable[str]) -> str:
    """What may have been meant by a name that there is not, and how the call looks."""
    known = signature.parameters
    wrong = next((name for name in kwargs if name not in known), None)
    first = [n for n, p in known.items() if p.kind is not p.KEYWORD_ONLY]
    return f"{nearest(wrong, known) if wrong else ''}The first arguments are {', '.join(first)}."
