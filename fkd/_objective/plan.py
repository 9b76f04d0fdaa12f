"""The order in which the values of an objective are computed, each distinct one once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._mean import Mean, mean
from .._refs.refs import Context, Ref, children, compute
from .._types import Scalars
from .terms import Term


class Plan:
    """All refs of a graph, children first; refs that are equal share one place."""

    def __init__(self, refs: Iterable[Ref]) -> None:
        self.place: dict[Ref, int] = {}
        self.order: list[tuple[Ref, tuple[int, ...]]] = []
        for ref in refs:
            self._add(ref)

    def _add(self, ref: Ref) -> int:
        if ref not in self.place:
            below = tuple(self._add(child) for child in children(ref))
            self.place[ref] = len(self.order)
            self.order.append((ref, below))
        return self.place[ref]

    def compute(self, ctx: Context) -> list[Any]:
        """The value of every ref, by place."""
        values: list[Any] = []
        for ref, below in self.order:
            values.append(compute(ref, ctx, *(values[i] for i in below)))
        return values


class Evaluated(NamedTuple):
    """What a loss returned, which of its positions count, and its new state."""

    result: Any
    where: Tensor | None
    state: Any

    @property
    def mean(self) -> Mean:
        """The mean over the positions that count."""
        if isinstance(self.result, Mean):
            return self.result
        # A relational loss gives one value for the batch; its mask has done its work inside.
        return mean(self.result, where=self.where if self.result.ndim else None)


BoundTerm = Callable[[Sequence[Any], Scalars, Any], Evaluated]
"""`(values by place, scalars, state) -> Evaluated`."""


def bind(name: str, term: Term, place: Mapping[Ref, int]) -> BoundTerm:
    """A term as a function of the computed values.

    What can be decided before tracing (which options the loss takes, which of its positions
    count) is decided here.
    """
    arguments = [place[ref] for ref in term.args]
    options = {k: place[v] for k, v in term.kwargs.items() if isinstance(v, Ref)}
    knobs = [k for k in term.moving if k != "weight"]
    static = {k: v for k, v in term.kwargs.items() if k not in options and k not in knobs}
    where_at = None if term.where is None else place[term.where]
    takes_where = takes(term.loss, "where")
    counted = counted_positions(term.loss)

    def evaluate(values: Sequence[Any], scalars: Scalars, state: Any) -> Evaluated:
        args = [values[i] for i in arguments]
        kwargs = {**static, **{k: values[i] for k, i in options.items()}}
        kwargs.update({k: scalars[f"{name}/{k}"] for k in knobs})
        where = None if where_at is None else values[where_at].bool()
        positions = where if counted is None else _both(where, counted(args, kwargs))
        if where is not None:
            if takes_where:
                kwargs["where"] = where
            else:
                args = [blank(x, where) for x in args]
        if term.state is None:
            result = term.loss(*args, **kwargs)
        else:
            result, state = term.loss(*args, state=state, **kwargs)
        return Evaluated(result, positions, state)

    return evaluate


def blank(x: Any, where: Tensor) -> Any:
    """Zeros in the place of what does not count, for a loss that knows nothing of masks."""
    fits = isinstance(x, Tensor) and x.shape[: where.ndim] == where.shape
    if not fits or not x.is_floating_point():
        return x
    return x.masked_fill(~where.reshape(where.shape + (1,) * (x.ndim - where.ndim)), 0.0)


def takes(fn: Callable[..., Any], name: str) -> bool:
    """Whether a function accepts a keyword argument."""
    try:
        parameters = inspect.signature(fn).parameters
    except (TypeError, ValueError):
        return False
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


Positions = Callable[[Sequence[Any], Mapping[str, Any]], Tensor]
"""`(args, kwargs) -> mask`."""


def counted_positions(fn: Callable[..., Any]) -> Positions | None:
    """Which positions a loss counts by itself (labels that are not `ignore_index`), if it says.

    See `fkd.losses.counted_where`.
    """
    inner = getattr(fn, "func", fn)
    rule = getattr(inner, "counted_where", None)
    if rule is None:
        return None
    parameters = inspect.signature(fn).parameters
    defaults = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
    positional = [n for n, p in parameters.items() if p.kind is not p.KEYWORD_ONLY]
    wanted = list(inspect.signature(rule).parameters)

    def positions(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        given = {**defaults, **dict(zip(positional, args, strict=False)), **kwargs}
        return rule(**{name: given[name] for name in wanted})

    return positions


def _both(where: Tensor | None, counted: Tensor) -> Tensor:
    return counted if where is None else torch.logical_and(where, counted)
