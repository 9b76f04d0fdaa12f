"""Terms: losses whose arguments are not filled in yet, and the graph that they form."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, TypeGuard

from torch import Tensor

from .._base.errors import expect
from .._base.types import Loss
from .._refs.derived import as_ref
from .._refs.paths import name_of, show
from .._refs.refs import Ref
from ..schedules import Schedule

Moving: TypeAlias = Tensor | Callable[[int], float]
"""What may have another value at every step: a 0-d tensor, a schedule, a function of the step."""

if TYPE_CHECKING:
    Knob: TypeAlias = float | Moving | Ref
else:  # what else a user gives is answered by `problems`, in words
    Knob = object
"""A number: a constant, one that moves, or a ref to a scalar (a weight: of one a position)."""


@dataclass(frozen=True, eq=False)
class Term:
    """One loss of an objective: what to compute, on what, where, and how much it weighs."""

    loss: Loss
    args: tuple[Ref, ...]
    kwargs: Mapping[str, object] = field(default_factory=dict)
    weight: Knob | None = 1.0
    where: Ref | None = None
    state: object = None
    to: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        shown = [name_of(self.loss), *map(repr, self.args)]
        shown += [f"{k}={show(v)}" for k, v in self.kwargs.items()]
        shown += [] if self.where is None else [f"where={self.where!r}"]
        if self.weight is None:
            return f"metric({', '.join(shown)})"
        shown += [f"weight={show(self.weight)}"]
        if self.to is not None:
            shown.append(f"to={self.to!r}" if len(self.to) != 1 else f"to={self.to[0]!r}")
        return f"term({', '.join(shown)})"

    def reaches(self, model: str) -> bool:
        """Whether the parameters of a model may have a gradient from this term."""
        return self.weight is not None and (self.to is None or model in self.to)

    def _arithmetic(self, other: object) -> NoReturn:
        raise TypeError(
            "terms are not added or multiplied: the objective adds them up, "
            "{'kd': fkd.term(...), 'ce': fkd.term(...)}, and the factor is the weight, "
            "fkd.term(..., weight=0.5)."
        )

    __add__ = __radd__ = __sub__ = __rsub__ = _arithmetic
    __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _arithmetic

    @property
    def refs(self) -> tuple[Ref, ...]:
        """Everything that the term reads."""
        options = (*self.kwargs.values(), self.weight, self.where)
        return (*self.args, *(o for o in options if isinstance(o, Ref)))

    @property
    def moving(self) -> dict[str, Moving]:
        """The knobs whose value may change from step to step, the weight among them."""
        knobs: dict[str, object] = {**self.kwargs, "weight": self.weight}
        for name, value in self.kwargs.items():  # of options with knobs of their own
            knobs |= {f"{name}/{n}": knob for n, knob in knobs_of(value).items()}
        return {name: knob for name, knob in knobs.items() if moves(knob)}


if TYPE_CHECKING:
    Graph: TypeAlias = Term | Mapping[str, "Graph"] | Mapping[int, "Graph"] | Sequence["Graph"]
else:  # checks at run time do not follow a type into itself
    Graph = object
"""A term, or any nesting of mappings and sequences of terms; the keys are the names in logs."""


def term(
    loss: Loss,
    *args: object,
    weight: Knob | None = 1.0,
    where: object = None,
    state: object = None,
    to: str | Sequence[str] | None = None,
    **kwargs: object,
) -> Term:
    """A loss with its arguments not yet filled in; written like the call of the loss itself.

    Args:
      loss: `loss(*args, **kwargs)`, returning one value per position, a `Mean` (with parts:
        `fkd.MeanWithParts`), or (with `state`) one of these and the new state. If it takes
        `where`, the mask is passed on.
      args: refs, functions of the context, or tensors.
      weight: factor of the term's mean in the total. Like every numeric option it is a float
        (a constant of the compiled graph), or a 0-d tensor, a schedule or a plain function of
        the step (all of which may move without recompiling), or a ref: to a number, or to one for
        each position or example (advantages, importance ratios), which heads take as well.
      where: ref to a mask of the shape of the loss's values, bool or 0/1 integers: True where
        a position counts, such as `batch.labels != -100`. Positions that do not count give no
        value and no gradient. A loss that takes a finer mask (one of places, of tokens) is
        given it, and its value counts where any part of it does.
      state: initial state (a pytree of tensors) of a stateful loss, passed as `state=`.
      to: the trainable models whose parameters the term trains, a name or several; what it reads
        of others is a constant to it, though gradients pass through them (to a generator, through
        the student that looks at its images). None: every model that it depends on. One forward
        pass serves all terms, and each model has one backward pass over what it needs.
      kwargs: the loss's options. Refs are filled in; functions of one argument are
        schedules; anything else is passed as it is.

    Returns:
      A `Term`, for use in the graph given to `Objective`.

    Example:
      >>> term(kl, student.logits, teacher.logits, temperature=4.0, weight=0.9)
      term(kl, student.logits, teacher.logits, temperature=4.0, weight=0.9)
      >>> term(kl, ref("peer").logits, student.logits, to="peer")
      term(kl, ref('peer').logits, student.logits, weight=1.0, to='peer')
    """
    args, absent = _without_none(loss, args)
    _expect_options_by_name(loss, args)
    return Term(
        loss=loss,
        args=tuple(map(as_ref, args)),
        kwargs={**absent, **kwargs},
        weight=weight,
        where=None if where is None else as_ref(where),
        state=state,
        to=(to,) if isinstance(to, str) else None if to is None else tuple(to),
    )


def _expect_options_by_name(loss: Loss, args: tuple[object, ...]) -> None:
    """Refuse a number among the values: an option of the loss without its name."""
    for i, x in enumerate(args):
        if not isinstance(x, int | float) or isinstance(x, bool):
            continue
        try:
            names = [n for n in inspect.signature(loss).parameters if n != "where"]
        except (TypeError, ValueError):  # no function at all, which is said elsewhere; or a builtin
            names = []
        by_name = f" By its name it is an option: {names[i]}={x!r}." if i < len(names) else ""
        raise TypeError(
            f"term: {x!r} is not a ref.{by_name} A value that is the same in every step is a "
            f"tensor: torch.tensor({x!r})."
        )


def _without_none(
    loss: Loss, args: tuple[object, ...]
) -> tuple[tuple[object, ...], dict[str, object]]:
    """Positional arguments up to the first None, and those from there on by their names."""
    first = next((i for i, x in enumerate(args) if x is None), None)
    if first is None:
        return args, {}
    try:
        names = list(inspect.signature(loss).parameters)
    except Exception:  # no function at all, which is said elsewhere; or a builtin
        return args, {}
    rest = dict(zip(names[first:], args[first:], strict=False))
    return args[:first], {n: x if x is None else as_ref(x) for n, x in rest.items()}


def metric(fn: Loss, *args: object, where: object = None, **kwargs: object) -> Term:
    """A term that is measured and logged, and is no part of the total.

    Example:
      >>> metric(kl, student.logits, teacher.logits)
      metric(kl, student.logits, teacher.logits)
    """
    options: dict[str, Any] = kwargs  # `state` and `to` as `term` takes them
    return term(fn, *args, weight=None, where=where, **options)


def with_refs(term: Term, change: Callable[[Ref], Ref]) -> Term:
    """The term with other refs in the places of its own: values, options, weight and mask."""

    def option(value: Any) -> Any:
        return change(value) if isinstance(value, Ref) else value

    return replace(
        term,
        args=tuple(map(option, term.args)),
        kwargs={name: option(value) for name, value in term.kwargs.items()},
        weight=option(term.weight),
        where=option(term.where),
    )


def moves(knob: object) -> TypeGuard[Moving]:
    """Whether a knob's value may change from step to step (and is not read from the context)."""
    if isinstance(knob, Ref):
        return False
    if isinstance(knob, Tensor):
        return knob.ndim == 0 and knob.is_floating_point()
    return isinstance(knob, Schedule) or _takes_one_argument(knob)


def _takes_one_argument(value: object) -> bool:
    if not callable(value) or isinstance(value, type):
        return False
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):  # a builtin such as torch.relu: a function, not a schedule
        return False
    required = [
        p
        for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return len(required) == 1


def knobs_of(value: object) -> Mapping[str, object]:
    """What may move inside an option (weights of a divergence), by name: its `knobs`. It gives
    the option with numbers for them by `at(values)`."""
    inside = None if isinstance(value, (Ref, type)) else getattr(value, "knobs", None)
    return inside if isinstance(inside, Mapping) else {}


def part_names(term: Term) -> tuple[str, ...]:
    """The names of the parts that a loss logs beside its sum, as far as it says so before."""
    inner = getattr(term.loss, "func", term.loss)
    names = getattr(inner, "part_names", None)
    bound = term.loss.keywords if isinstance(term.loss, functools.partial) else {}
    return () if names is None else tuple(names(**{**bound, **term.kwargs}))


def value_at(knob: Moving, step: int) -> float | Tensor:
    """The value of a moving knob at a step: a 0-d tensor as it is, a schedule's number."""
    return knob if isinstance(knob, Tensor) else float(knob(step))


def flatten(graph: Graph) -> dict[str, Term]:
    """The terms of a graph by their path, in the order in which they were written.

    Example:
      >>> list(flatten({"kd": term(kl, student.logits, teacher.logits), "hidden": {}}))
      ['kd']
    """
    terms: dict[str, Term] = {}
    for name, leaf in _leaves(graph, ()):
        if name in terms:
            raise ValueError(f"term {name!r} is given twice. Rename one of its keys.")
        terms[name] = leaf
    return terms


def _leaves(graph: Graph, path: tuple[str, ...]) -> Iterator[tuple[str, Term]]:
    name = "/".join(path) or "loss"
    if isinstance(graph, Term):
        yield name, graph
    elif isinstance(graph, Mapping):
        for key, value in graph.items():
            yield from _leaves(value, (*path, str(key)))
    elif isinstance(graph, Sequence) and not isinstance(graph, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        for index, value in enumerate(graph):
            yield from _leaves(value, (*path, str(index)))
    else:
        raise TypeError(
            f"terms[{name!r}] is a {type(graph).__name__}; a term or a dict of terms is expected. "
            "Wrap the loss: fkd.term(loss, student.logits, teacher.logits)."
        )


Strategy: TypeAlias = str | Sequence[int] | Callable[[int], int]


def layer_map(
    *, student: int, teacher: int, strategy: Strategy = "uniform"
) -> tuple[tuple[int, int], ...]:
    """Which teacher layer each student layer learns from, as `(student, teacher)` pairs.

    Layers count from 1, so that a pair indexes `hidden_states`, where 0 are the embeddings.

    Args:
      student: number of student layers.
      teacher: number of teacher layers, at least as many.
      strategy: `"uniform"` spreads over the whole teacher and ends at its last layer
        (TinyBERT, arXiv:1909.10351); `"last"` takes the last ones and `"skip"` every k-th
        from the bottom with k = teacher // student (PKD, arXiv:1908.09355); or the list of
        teacher layers, one for each student layer.

    Example:
      >>> layer_map(student=3, teacher=12)
      ((1, 4), (2, 8), (3, 12))
      >>> layer_map(student=3, teacher=12, strategy="last")
      ((1, 10), (2, 11), (3, 12))
      >>> layer_map(student=2, teacher=12, strategy=[6, 12])
      ((1, 6), (2, 12))
    """
    for name, count in (("student", student), ("teacher", teacher)):
        expect("layer_map", name, count, int, "a number of layers")
    if student < 1 or teacher < 1:
        raise ValueError(f"layer_map: student={student}, teacher={teacher}; both must be >= 1.")
    strategies: dict[str, Callable[[int], int]] = {
        # Rounded half up, in integers: s * teacher / student.
        "uniform": lambda s: (2 * s * teacher + student) // (2 * student),
        "last": lambda s: teacher - student + s,
        "skip": lambda s: s * (teacher // student),
    }
    layers = range(1, student + 1)
    if isinstance(strategy, str):
        if strategy not in strategies:
            raise ValueError(
                f"layer_map: strategy {strategy!r}; expected one of {sorted(strategies)} "
                "or a list of teacher layers."
            )
        if student > teacher:
            raise ValueError(
                f"layer_map: {student} student layers and {teacher} teacher layers; strategy "
                f"{strategy!r} needs at least as many teacher layers. Give the list of teacher "
                "layers, one for each student layer."
            )
        chosen = [strategies[strategy](s) for s in layers]
    else:
        chosen = [strategy(s) for s in layers] if callable(strategy) else list(strategy)
    if len(chosen) != student or not all(0 <= t <= teacher for t in chosen):
        raise ValueError(
            f"layer_map: teacher layers {chosen}; {student} numbers from 0 (the embeddings) "
            f"to {teacher} are expected, one for each student layer."
        )
    return tuple(zip(layers, chosen, strict=True))
