"""Divergences as values: `0.9 * kl() + 0.1 * cross_entropy()` is one of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Phi = Callable[[Tensor, Tensor], Tensor]
"""`phi(log_p, log_q)`: what one entry of the vocabulary adds to the divergence."""

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""`rule(log_p, log_q, p, q)`: the summand phi and its slope, elementwise.

The slope is `d phi / d log q` up to a multiple of q, which the softmax takes out again. The
two come together since they share their logarithms.
"""


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
    """

    name: str
    rule: Rule | None = field(default=None, compare=False, repr=False)
    params: tuple[float, ...] = ()
    kind: str | None = None
    square: bool = True
    phi: Phi | None = None


@dataclass(frozen=True)
class Divergence:
    """A weighted sum of divergences, evaluated together in one pass over the vocabulary.

    Sums and multiples of divergences are divergences. A weight is a number or a 0-d tensor.

    Example:
      >>> from fkd.losses import head
      >>> 0.9 * head.kl() + 0.1 * head.cross_entropy()
      0.9 * kl() + 0.1 * cross_entropy()
    """

    terms: tuple[tuple[float | Tensor, Atom], ...]

    def __add__(self, other: Divergence) -> Divergence:
        if not isinstance(other, Divergence):  # pyright: ignore[reportUnnecessaryIsInstance]
            return NotImplemented
        return Divergence(self.terms + other.terms)

    def scaled(self, weight: float | Tensor) -> Divergence:
        """`weight * self`; the form that compiled code takes for a weight that is a tensor."""
        return Divergence(tuple((weight * w, atom) for w, atom in self.terms))

    def __mul__(self, weight: float | Tensor) -> Divergence:
        return self.scaled(weight)

    __rmul__ = __mul__

    def __repr__(self) -> str:
        shown = [(w if isinstance(w, Tensor) else f"{w:g}", a.name) for w, a in self.terms]
        return " + ".join(name if w == "1" else f"{w} * {name}" for w, name in shown)

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
