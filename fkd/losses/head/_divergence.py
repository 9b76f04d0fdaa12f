"""Divergences as values: `0.9 * kl() + 0.1 * cross_entropy()` is one of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

Phi = Callable[[Tensor, Tensor], Tensor]
"""`phi(log_p, log_q)`: what one entry of the vocabulary adds to the divergence."""

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""`rule(log_p, log_q, p, q)`: the summand phi and its slope, elementwise.

The slope is `d phi / d log q` up to a multiple of q, which the softmax takes out again. The
two come together since they share their logarithms.
"""


Moving = Callable[[int], float]
"""A weight that is a function of the step: a schedule."""

Weight = float | Tensor | Moving


@dataclass(frozen=True)
class Scaled:
    """A multiple of a function of the step."""

    factor: float
    schedule: Moving

    def __call__(self, step: int) -> float:
        return self.factor * float(self.schedule(step))

    def __repr__(self) -> str:
        return f"{self.factor:g} * {self.schedule!r}"


@dataclass(frozen=True)
class Atom:
    """One divergence, `sum_v phi(log p_v, log q_v)`, or a loss of the student's logits alone.

    Attributes:
      name: how it prints, and its key among the metrics.
      rule: summand and slope; None for a loss that is not a sum over the vocabulary.
      params: the numbers of the formula.
      square: whether the value carries the factor T^2 of a softened distribution.
      kind: which branch of the fused kernel computes it; None if the kernel has none.
      phi: the function that the user gave, if one did.
      label: its name in a log; None: what the others leave clear.
    """

    name: str
    rule: Rule | None = field(default=None, compare=False, repr=False)
    params: tuple[float, ...] = ()
    kind: str | None = None
    square: bool = True
    phi: Phi | None = None
    label: str | None = None


@dataclass(frozen=True)
class Divergence:
    """A weighted sum of divergences, evaluated together in one pass over the vocabulary.

    Sums and multiples of divergences are divergences. A weight is a number, a 0-d tensor or, in
    an objective, a schedule. An objective logs every divergence of a sum by its name, without its
    weight: `loss/kd` is the sum, `loss/kd/kl` and `loss/kd/cross_entropy` are its parts.

    Example:
      >>> from fkd.losses import head
      >>> 0.9 * head.kl() + 0.1 * head.cross_entropy().named("labels")
      0.9 * kl() + 0.1 * cross_entropy().named('labels')
      >>> fkd.schedules.linear(1.0, 0.0, 100) * head.cross_entropy()
      linear(1.0, 0.0, 100) * cross_entropy()
    """

    terms: tuple[tuple[Any, Atom], ...]

    def __add__(self, other: Divergence) -> Divergence:
        if not isinstance(other, Divergence):  # pyright: ignore[reportUnnecessaryIsInstance]
            return NotImplemented
        return Divergence(self.terms + other.terms)

    def scaled(self, weight: Weight) -> Divergence:
        """`weight * self`; the form that compiled code takes for a weight that is a tensor."""
        return Divergence(tuple((_product(weight, w), atom) for w, atom in self.terms))

    def __mul__(self, weight: Weight) -> Divergence:
        return self.scaled(weight)

    __rmul__ = __mul__

    def __repr__(self) -> str:
        shown = [(f"{w:g}" if isinstance(w, (int, float)) else w, _shown(a)) for w, a in self.terms]
        return " + ".join(name if w == "1" else f"{w} * {name}" for w, name in shown)

    def named(self, name: str) -> Divergence:
        """The same divergence under another name in logs.

        Raises:
          ValueError: it is a sum, whose parts have names of their own.
        """
        if len(self.terms) != 1:
            raise ValueError(f"head: {self!r} is a sum; name its parts one by one.")
        weight, atom = self.terms[0]
        return Divergence(((weight, replace(atom, label=name)),))

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the divergences in a log, in order; every one is there once."""
        kinds = [atom.label or atom.kind or atom.name for atom in self.atoms]
        names = [
            kind if kinds.count(kind) == 1 else atom.name
            for kind, atom in zip(kinds, self.atoms, strict=True)
        ]
        again = [names[:i].count(name) for i, name in enumerate(names)]
        return tuple(f"{n}-{k + 1}" if k else n for n, k in zip(names, again, strict=True))

    @property
    def knobs(self) -> dict[str, Callable[[int], Any]]:
        """The weights that are functions of the step, by name."""
        weights = zip(self.labels, self.terms, strict=True)
        return {n: w for n, (w, _) in weights if callable(w)}

    def at(self, values: Mapping[str, float | Tensor]) -> Divergence:
        """The same divergence with numbers for weights that are functions of the step.

        Args:
          values: by the names in `knobs`.
        """
        named = zip(self.labels, self.terms, strict=True)
        return Divergence(tuple((values.get(n, w), atom) for n, (w, atom) in named))

    @property
    def atoms(self) -> tuple[Atom, ...]:
        """The divergences without their weights."""
        return tuple(atom for _, atom in self.terms)

    @property
    def needs_labels(self) -> bool:
        """Whether a hard cross-entropy is among them."""
        return any(atom.kind == "cross_entropy" for atom in self.atoms)

    @property
    def needs_teacher(self) -> bool:
        """Whether any of them reads the teacher."""
        return any(atom.rule is not None for atom in self.atoms)


def _shown(atom: Atom) -> str:
    return atom.name if atom.label is None else f"{atom.name}.named({atom.label!r})"


def _product(a: Weight, b: Weight) -> Weight:
    """Of two weights, at most one of which is a function of the step."""
    if isinstance(a, Tensor) or isinstance(b, Tensor) or not (callable(a) or callable(b)):
        if callable(a) or callable(b):
            raise ValueError(
                "head: a weight is a tensor times a schedule; one of them is expected."
            )
        return a * b
    if callable(a) and callable(b):
        raise ValueError(f"head: a weight is {a!r} times {b!r}; one schedule is expected.")
    schedule, factor = (a, b) if callable(a) else (b, a)
    assert callable(schedule) and not callable(factor)
    return schedule if factor == 1 else Scaled(float(factor), schedule)


def one(name: str, rule: Rule | None, *params: float, square: bool = True) -> Divergence:
    """A named divergence, of weight 1."""
    shown = f"{name}({', '.join(f'{x:g}' for x in params)})"
    return Divergence(((1.0, Atom(shown, rule, params, name, square)),))


def elementwise(phi: Phi) -> Divergence:
    """Your own divergence `sum_v phi(log_p_v, log_q_v)`, from a pure elementwise function.

        g_v = (1 / q_v) d phi / d log q_v,   d/dz = q (g - E_q[g]) / T

    The gradient comes from `torch.func.grad` of `phi` on one chunk at a time. An entry that
    both models give probability 0 adds 0; elsewhere `phi` must handle -inf itself. A bare
    function is taken for its `elementwise` wherever a divergence is expected.

    Args:
      phi: maps `log_p` and `log_q`, both `[tokens, vocab]`, to `[tokens, vocab]`.

    Returns:
      A `Divergence`, scaled by T^2 like the named ones.

    Example:
      >>> from fkd.losses import head
      >>> head.elementwise(lambda log_p, log_q: (log_p.exp().sqrt() - log_q.exp().sqrt()) ** 2)
      elementwise(<lambda>)
    """
    name = f"elementwise({getattr(phi, '__name__', repr(phi))})"

    def rule(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        dead = torch.isneginf(log_p) & torch.isneginf(log_q)
        log_p, log_q = log_p.masked_fill(dead, 0.0), log_q.masked_fill(dead, 0.0)

        def total(x: Tensor) -> tuple[Tensor, Tensor]:
            values = phi(log_p, x)
            if values.shape != x.shape:
                raise ValueError(
                    f"head_divergence: {name} gives {tuple(values.shape)} for inputs "
                    f"{tuple(x.shape)}; one value for every entry is expected. Leave the sum over "
                    "the vocabulary to the head; the named divergences are head.kl() and others."
                )
            values = values.masked_fill(dead, 0.0)
            return values.sum(), values

        slope, values = torch.func.grad(total, has_aux=True)(log_q)
        return values, slope

    return Divergence(((1.0, Atom(name, rule, phi=phi)),))


def as_divergence(value: Divergence | Phi) -> Divergence:
    """A divergence as it is; a function `phi(log_p, log_q)` as its `elementwise`."""
    if isinstance(value, Divergence):
        return value
    if not callable(value):
        raise ValueError(
            f"head_divergence: divergence {value!r} is neither a divergence nor a function "
            "phi(log_p, log_q). Did you mean head.kl()?"
        )
    if not torch.compiler.is_compiling() and not _takes_two(value):
        raise ValueError(
            f"head_divergence: divergence {getattr(value, '__name__', value)} does not take "
            "(log_p, log_q). If it makes a divergence, call it: head.kl(), not head.kl."
        )
    return elementwise(value)


def _takes_two(fn: Phi) -> bool:
    try:
        inspect.signature(fn).bind(None, None)
    except TypeError:
        return False
    except ValueError:  # no signature to be had, as of some builtins
        return True
    return True
