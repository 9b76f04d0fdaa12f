"""Combinations by the angles between gradients: all that they need is the Gram matrix."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._combination import Gradient, Groups, gram, weighted_sum

_WORD = (1 << 32) - 1


@dataclass(frozen=True)
class PCGrad:
    """See `pcgrad`, which makes it."""

    groups: Groups | None = None

    def init(self, parameters: Gradient, groups: Sequence[str]) -> Any:
        """How many orders have been drawn."""
        like = next(p for named in parameters.values() for p in named.values())
        return {"drawn": torch.zeros((), dtype=torch.int64, device=like.device)}

    def __call__(
        self, gradients: Mapping[str, Gradient], losses: Mapping[str, Tensor], state: Any
    ) -> tuple[Gradient, Any]:
        rows = list(gradients.values())
        order = orders(len(rows), state["drawn"])
        return weighted_sum(rows, surgery(gram(rows), order).sum(0)), {"drawn": state["drawn"] + 1}


def orders(count: int, drawn: Tensor) -> Tensor:
    """`[count, count]`, a permutation in every row: a function of a number and of nothing else, so
    that all processes of a run have the same."""
    places = torch.arange(count * count, device=drawn.device).reshape(count, count)
    x = (drawn * (count * count) + places) & _WORD
    for factor in (0x2C1B3C6D, 0x297A2D39):  # below 2^30: no product overflows
        x = ((x ^ (x >> 15)) * factor) & _WORD
    return (x ^ (x >> 15)).argsort(-1)


def surgery(inner: Tensor, order: Tensor) -> Tensor:
    """`[K, K]`, the projected gradients of PCGrad as coefficients of the original ones.

    Args:
      inner: `[K, K]`, the Gram matrix of the gradients.
      order: `[K, K]`, row i is the order in which gradient i is compared with the others.
    """
    count = len(inner)
    every = torch.arange(count, device=inner.device)
    coefficients = torch.eye(count, dtype=inner.dtype, device=inner.device)
    lengths = (coefficients * inner).sum(-1)
    for position in range(count):
        other = order[:, position]
        conflict = (coefficients * inner[other]).sum(-1)
        length = lengths[other]
        remove = torch.where((conflict < 0) & (other != every), conflict / length, 0.0)
        one_hot = (every == other[:, None]).to(inner.dtype)
        coefficients = coefficients - remove[:, None] * one_hot
    return coefficients


def pcgrad(groups: Groups | None = None) -> PCGrad:
    """Projects every gradient onto the normal plane of each that it conflicts with (PCGrad).

        g_i = g_i - (g_i . g_j) / |g_j|^2 g_j   for all j, in random order, where g_i . g_j < 0
        gradient = sum_i g_i

    The order is another one at every step, and the same in every run.

    Args:
      groups: `{name: terms}`; None: each term has a gradient of its own.

    Example:
      >>> one = {"student": {"w": torch.tensor([1.0, 0.0])}}
      >>> two = {"student": {"w": torch.tensor([-1.0, 1.0])}}
      >>> combine = pcgrad()
      >>> combine({"kd": one, "labels": two}, {}, combine.init(one, ["kd", "labels"]))[0]
      {'student': {'w': tensor([0.5000, 1.5000])}}

    Reference:
      Yu et al., Gradient Surgery for Multi-Task Learning, arXiv:2001.06782.
    """
    return PCGrad(groups)


class _OfGram(abc.ABC):
    """A sum of gradients whose weights are a function of their inner products alone."""

    @abc.abstractmethod
    def weights(self, inner: Tensor) -> Tensor:
        """`[K]`, from the Gram matrix, `[K, K]`."""

    def init(self, parameters: Gradient, groups: Sequence[str]) -> Any:
        """Nothing to remember."""
        return {}

    def __call__(
        self, gradients: Mapping[str, Gradient], losses: Mapping[str, Tensor], state: Any
    ) -> tuple[Gradient, Any]:
        rows = list(gradients.values())
        return weighted_sum(rows, self.weights(gram(rows))), state


@dataclass(frozen=True)
class MinNorm(_OfGram):
    """See `min_norm`, which makes it."""

    iterations: int
    groups: Groups | None = None

    def weights(self, inner: Tensor) -> Tensor:
        """`[K]`, those of the shortest convex combination."""
        return nearest_to_zero(inner, self.iterations)


def nearest_to_zero(inner: Tensor, iterations: int) -> Tensor:
    """`[K]`, the convex combination of K vectors of the smallest norm (Frank-Wolfe).

    Args:
      inner: `[K, K]`, the Gram matrix of the vectors.
      iterations: with exact line search; two vectors need one.
    """
    count = len(inner)
    every = torch.arange(count, device=inner.device)
    alpha = torch.full_like(inner[0], 1 / count)
    for _ in range(iterations):
        slope = (inner * alpha).sum(-1)
        corner = (every == slope.argmin()).to(inner.dtype)
        towards = corner - alpha
        curvature = (towards * (inner * towards).sum(-1)).sum()
        length = -(towards * slope).sum() / curvature.clamp(min=torch.finfo(inner.dtype).tiny)
        alpha = alpha + length.clamp(0, 1) * towards
    return alpha


def min_norm(groups: Groups | None = None, *, iterations: int = 32) -> MinNorm:
    """The shortest convex combination of the gradients, along which no term rises (MGDA).

        gradient = sum_k alpha_k g_k,   alpha = argmin |sum_k alpha_k g_k|^2 on the simplex

    With one term for each teacher it weights teachers by their agreement.

    Args:
      groups: `{name: terms}`; None: each term has a gradient of its own.
      iterations: of Frank-Wolfe on the K x K Gram matrix.

    Example:
      >>> one = {"student": {"w": torch.tensor([2.0, 0.0])}}
      >>> two = {"student": {"w": torch.tensor([0.0, 2.0])}}
      >>> min_norm()({"kd": one, "labels": two}, {}, {})[0]
      {'student': {'w': tensor([1., 1.])}}

    Reference:
      Sener and Koltun, Multi-Task Learning as Multi-Objective Optimization, arXiv:1810.04650.
    """
    if iterations < 1:
        raise ValueError(f"min_norm: iterations is {iterations}; at least 1 is expected.")
    return MinNorm(iterations, groups)


@dataclass(frozen=True)
class ConflictFree(_OfGram):
    """See `conflict_free`, which makes it."""

    groups: Groups | None = None

    def weights(self, inner: Tensor) -> Tensor:
        """`[K]`, those of the direction of equal angles."""
        return equal_cosines(inner)


def equal_cosines(inner: Tensor) -> Tensor:
    """`[K]`, the combination of K vectors that makes the same angle with each, as long as the sum
    of their projections on it.

    Args:
      inner: `[K, K]`, the Gram matrix of the vectors. A vector that is 0 has no angle.
    """
    gramian = inner.double()
    lengths = gramian.diagonal().sqrt()
    there = lengths > 0
    lengths = torch.where(there, lengths, 1.0)
    cosines = gramian / (lengths[:, None] * lengths)
    ridge = 1e-10 + (~there).double()  # so that what is 0, or the same, can be solved for
    right = there.double()
    solved, _ = torch.linalg.solve_ex(cosines + torch.diag(ridge), right)
    projected = (cosines * solved).sum(-1)
    length = (solved * projected).sum().clamp(min=torch.finfo(torch.float32).tiny).sqrt()
    whole = (lengths * projected).sum() / length
    return (whole * solved / (length * lengths)).to(inner.dtype)


def conflict_free(groups: Groups | None = None) -> ConflictFree:
    """The direction that makes the same acute angle with every gradient (ConFIG).

        u_k = g_k / |g_k|,   d = [u_1 ... u_K]^(-T) 1   (the pseudoinverse),
        gradient = (sum_k g_k . d / |d|) d / |d|

    No term rises along it, whatever the sizes of the gradients; it is the shorter, the more they
    disagree.

    Args:
      groups: `{name: terms}`; None: each term has a gradient of its own.

    Example:
      >>> one = {"student": {"w": torch.tensor([3.0, 0.0])}}
      >>> two = {"student": {"w": torch.tensor([0.0, 1.0])}}
      >>> conflict_free()({"kd": one, "labels": two}, {}, {})[0]
      {'student': {'w': tensor([2., 2.])}}

    Reference:
      Liu et al., ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks,
      arXiv:2408.11104.
    """
    return ConflictFree(groups)
