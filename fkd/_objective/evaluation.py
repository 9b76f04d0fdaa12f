"""Terms over computed values: their means, their weights, and the total."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .._base.mean import Mean, MeanWithParts, divide, mean
from .._base.trees import map_tensors
from .._base.types import Scalars
from .._refs.paths import describe, name_of
from .._refs.refs import Ref
from .knobs import knob_values
from .terms import Moving, Term, knobs_of


class Evaluation(NamedTuple):
    """What terms give for a batch: means, weights, and the state of the stateful ones."""

    means: dict[str, Mean]
    weights: dict[str, Tensor]
    loss_state: dict[str, object]


class BoundTerms:
    """Terms as functions of the values of a plan.

    Args:
      terms: by name.
      place: where the value of each ref that they read stands.
    """

    def __init__(self, terms: Mapping[str, Term], place: Mapping[Ref, int]) -> None:
        self.terms = terms
        self._place = place
        self.functions = {name: bound_term(name, term, place) for name, term in terms.items()}
        self.knobs: dict[str, Moving] = {
            f"{name}/{knob}": value
            for name, term in terms.items()
            for knob, value in term.moving.items()
        }
        self._weights = {
            name: place[term.weight] for name, term in terms.items() if isinstance(term.weight, Ref)
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return BoundTerms, (self.terms, self._place)  # functions are bound again where it is read

    def scalars(self, step: int, device: torch.device | str | None = None) -> dict[str, Tensor]:
        """The moving knobs at a step; see `knob_values`."""
        return knob_values(self.knobs, step, device)

    def evaluate(
        self,
        values: Sequence[Any],
        scalars: Scalars,
        loss_state: Mapping[str, object],
        *,
        autocast: torch.dtype | None = None,
    ) -> Evaluation:
        """Every term on the values by place; the weights are not applied yet.

        A term whose state is not in `loss_state` begins with its initial one. `autocast` is
        passed on as `operand_dtype` to losses that multiply by a model's weights for it.
        """
        evaluation = Evaluation({}, {}, {})
        for name, term in self.terms.items():
            state = loss_state.get(name, term.state)
            with torch.set_grad_enabled(torch.is_grad_enabled() and term.weight is not None):
                weight = self._weight(name, values, scalars)
                by_position = weight if weight is not None and weight.ndim else None
                result = self.functions[name](values, scalars, state, autocast, by_position)
                if weight is not None and by_position is not None:
                    weight = weight.new_ones(())
                if problem := result_problem(term, result.result):
                    raise ValueError(f"{name!r}: {problem}")
                evaluation.means[name] = result.mean
                for part, value in result.parts.items():
                    evaluation.means[self._part_name(name, part)] = value
            if term.state is not None:
                evaluation.loss_state[name] = map_tensors(torch.detach, result.state)
            if weight is not None:
                evaluation.weights[name] = weight
            elif term.weight is not None:
                total = evaluation.means[name].total
                evaluation.weights[name] = torch.full_like(total, cast(float, term.weight))
        return evaluation

    def _part_name(self, name: str, part: str) -> str:
        if f"{name}/{part}" in self.terms:
            raise ValueError(
                f"terms[{name!r}] logs its part {part!r} as '{name}/{part}', which is another "
                f"term. Rename one of them: head.{part}().named('...')."
            )
        return f"{name}/{part}"

    def _weight(self, name: str, values: Sequence[Any], scalars: Scalars) -> Tensor | None:
        """The weight of a term, if it is a tensor."""
        if name in self._weights:
            return values[self._weights[name]]
        return scalars.get(f"{name}/weight")

    def total(self, evaluation: Evaluation, counts: Mapping[str, Tensor] | None = None) -> Tensor:
        """`[]`, the sum over terms of weight * total / count.

        Args:
          evaluation: from `evaluate`.
          counts: what each term's total is divided by, instead of this batch's own count.
        """
        parts = contributions(evaluation.means, evaluation.weights, counts)
        return torch.stack(list(parts.values())).sum()


def contributions(
    means: Mapping[str, Mean],
    weights: Mapping[str, Tensor],
    counts: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """`[]` for each term with a weight: what it adds to the total, weight * total / count."""
    parts: dict[str, Tensor] = {}
    for name, weight in weights.items():
        count = means[name].count if counts is None else counts[name]
        parts[name] = weight * divide(means[name].total, count)
    return parts


def result_problem(term: Term, result: object) -> str | None:
    """What is wrong with what a loss returned, if a mean cannot be taken of it."""
    if isinstance(result, (Tensor, Mean, MeanWithParts)):
        return None
    return (
        f"{name_of(term.loss)} returned {describe(result)}; a tensor with one value for each "
        "position (without .item()), or a fkd.Mean, is expected."
    )


class Evaluated(NamedTuple):
    """What a loss returned, which of its positions count, and its new state."""

    result: Any
    where: Tensor | None
    state: object

    @property
    def mean(self) -> Mean:
        """The mean over the positions that count."""
        if isinstance(self.result, MeanWithParts):
            return self.result.whole
        if isinstance(self.result, Mean):
            return self.result
        # A relational loss gives one value for the batch; its mask has done its work inside.
        return mean(self.result, where=self.where if self.result.ndim else None)

    @property
    def parts(self) -> dict[str, Mean]:
        """The means that the loss is a sum of, without gradient, if it says so."""
        if not isinstance(self.result, MeanWithParts):
            return {}
        parts = self.result.parts.items()
        return {name: Mean(m.total.detach(), m.count.detach()) for name, m in parts}

    def weighted(self, weight: Tensor) -> Evaluated:
        """With every value multiplied by the weight of its position (or example)."""
        shape = tuple(self.result.shape) if isinstance(self.result, Tensor) else None
        if shape is None or shape[: weight.ndim] != tuple(weight.shape):
            what = "a fkd.Mean" if shape is None else f"values of shape {shape}"
            raise ValueError(
                f"weight has shape {tuple(weight.shape)}, and the loss returned "
                f"{what}. A weight is a scalar, or has one number for each value (or for each "
                "leading axis of the values). Take its mean: fkd.call(torch.mean, weight)."
            )
        weight = weight.reshape(weight.shape + (1,) * (len(shape) - weight.ndim)).expand(shape)
        if self.where is not None:
            weight = weight.masked_fill(~self.where, 0.0)
        return self._replace(result=self.result * weight)


BoundTerm = Callable[..., Evaluated]
"""`(values by place, scalars, state, dtype of products, weight by position) -> Evaluated`."""


def bound_term(name: str, term: Term, place: Mapping[Ref, int]) -> BoundTerm:
    """A term as a function of the computed values.

    What can be decided before tracing (which options the loss takes, which of its positions
    count) is decided here.
    """
    arguments = [place[ref] for ref in term.args]
    options = {k: place[v] for k, v in term.kwargs.items() if isinstance(v, Ref)}
    nested: dict[str, Any] = {k: v for k, v in term.kwargs.items() if knobs_of(v)}
    knobs = [k for k in term.moving if k in term.kwargs]
    static = {k: v for k, v in term.kwargs.items() if k not in options and k not in knobs}
    loss = _with_parts(term.loss)
    weighs = takes(loss, "token_weights") and "token_weights" not in term.kwargs
    where_at = None if term.where is None else place[term.where]
    takes_where = takes(term.loss, "where")
    counted = counted_positions(term.loss)

    multiplies = _multiplies(term)

    def evaluate(
        values: Sequence[Any],
        scalars: Scalars,
        state: object,
        autocast: torch.dtype | None = None,
        weight: Tensor | None = None,
    ) -> Evaluated:
        args = [values[i] for i in arguments]
        kwargs = {**static, **{k: values[i] for k, i in options.items()}}
        kwargs.update({k: scalars[f"{name}/{k}"] for k in knobs})
        for k, option in nested.items():
            kwargs[k] = option.at({n: scalars[f"{name}/{k}/{n}"] for n in knobs_of(option)})
        if weight is not None and weighs:
            kwargs["token_weights"] = weight
        if multiplies and autocast is not None:
            kwargs["operand_dtype"] = autocast
        where = None if where_at is None else values[where_at].bool()
        positions = where if counted is None else _both(where, counted(args, kwargs))
        if where is not None:
            if takes_where:
                kwargs["where"] = where
            else:
                args = [blank(x, where) for x in args]
        if term.state is None:
            result = loss(*args, **kwargs)
        else:
            result, state = _with_state(term, loss(*args, state=state, **kwargs))
        if takes_where:
            positions = of_values(positions, result)
        elif where is not None and isinstance(result, Tensor) and result.ndim == 0:
            raise ValueError(
                f"{name_of(term.loss)} returned one number, of which `where` can leave nothing "
                "out. Return one value for each position (without .mean(), or with "
                "reduction='none'); or let the loss take `where` and leave positions out itself."
            )
        evaluated = Evaluated(result, positions, state)
        return evaluated if weight is None or weighs else evaluated.weighted(weight)

    return evaluate


def _with_parts(loss: Callable[..., Any]) -> Callable[..., Any]:
    """The function that also gives the parts of a sum, if a loss has one."""
    whole = getattr(loss, "in_parts", None)
    if whole is not None:
        return whole
    inner = getattr(getattr(loss, "func", None), "in_parts", None)
    if isinstance(loss, functools.partial) and inner is not None:
        return functools.partial(inner, *loss.args, **loss.keywords)
    return loss


def _with_state(term: Term, returned: Any) -> tuple[Any, Any]:
    """What a loss with a state returned, as the pair that it has to be."""
    if isinstance(returned, tuple) and len(cast(tuple[Any, ...], returned)) == 2:
        return cast(tuple[Any, Any], returned)
    raise ValueError(
        f"{name_of(term.loss)} has a state, and returned {describe(returned)}; a pair is "
        "expected: return values, new_state."
    )


def _multiplies(term: Term) -> bool:
    """Whether a loss does the products of a model's head, in a dtype that it can be told."""
    bound = term.loss.keywords if isinstance(term.loss, functools.partial) else {}
    try:
        parameters = inspect.signature(term.loss).parameters
    except (TypeError, ValueError):
        return False
    return "operand_dtype" in parameters and "operand_dtype" not in {**bound, **term.kwargs}


def of_values(where: Tensor | None, result: Any) -> Tensor | None:
    """A mask with further axes than the values (of places, of tokens), which a loss has used
    inside, as one of the values: a value counts where any of its parts does."""
    if where is None or not isinstance(result, Tensor) or not where.ndim > result.ndim > 0:
        return where
    fits = where.shape[: result.ndim] == result.shape
    return where.flatten(result.ndim).any(-1) if fits else where


def blank(x: Any, where: Tensor) -> Any:
    """Zeros instead of what does not count, for a loss that knows nothing of masks."""
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
        arguments = {**defaults, **dict(zip(positional, args, strict=False)), **kwargs}
        return rule(**{name: arguments[name] for name in wanted})

    return positions


def _both(where: Tensor | None, counted: Tensor) -> Tensor:
    return counted if where is None else torch.logical_and(where, counted)
