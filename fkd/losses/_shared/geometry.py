"""Lengths, distances, angles and correlations of vectors, with finite gradients at 0."""

from __future__ import annotations

import torch
from torch import Tensor

from .products import product


def norm(x: Tensor) -> Tensor:
    """Euclidean norm of the last axis; at the zero vector the gradient is 0, not nan."""
    return root((x * x).sum(-1))


def root(square: Tensor) -> Tensor:
    """Square root of values >= 0; at 0 the gradient is 0, not inf."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)


def unit(x: Tensor) -> Tensor:
    """`x / |x|` along the last axis: the one convention of all losses that compare directions.

    A zero vector stays zero, and the derivative there is that of x itself: finite.
    """
    length = norm(x).unsqueeze(-1)
    return x / torch.where(length > 0, length, 1.0)


def huber(x: Tensor, y: Tensor, beta: float | Tensor = 1.0) -> Tensor:
    """Elementwise smooth L1: quadratic up to a difference of `beta`, linear beyond."""
    difference = (x - y).abs()
    return torch.where(
        difference < beta, 0.5 * difference * difference / beta, difference - 0.5 * beta
    )


def counted(where: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """The weight (0 or 1) of every sample, `[batch]`, and how many count, at least 1."""
    weight = like.new_ones(like.shape[0]) if where is None else where.to(like.dtype)
    return weight, weight.sum().clamp(min=1.0)


def angle_cosines(x: Tensor, distance: Tensor) -> Tensor:
    """`[*batch, j, i, k]`: of the angle that rows i and k make at row j; 0 for a side of length 0.

    From inner products, so that no difference of two rows is stored. They should be centred: that
    keeps the difference of the products accurate when the rows are far from the origin.

    Args:
      x: `[*batch, row, features]`.
      distance: `[*batch, row, row]`, of the rows.
    """
    # <x_i - x_j, x_k - x_j> = g_ik - g_ij - g_jk + g_jj
    gram = product(x, x.mT)
    squares = gram.diagonal(dim1=-2, dim2=-1)[..., None, None]
    products = gram.unsqueeze(-3) - gram.unsqueeze(-1) - gram.unsqueeze(-2) + squares
    sides = distance.unsqueeze(-1) * distance.unsqueeze(-2)
    return torch.where(sides > 0, products / torch.where(sides > 0, sides, 1.0), 0.0)


def pairwise_distance(x: Tensor) -> Tensor:
    """Euclidean distances `[batch, batch]` of the rows; 0 with a zero gradient at equal rows."""
    return root(square_distance(x))


def square_distance(x: Tensor) -> Tensor:
    """Squared distances `[batch, batch]` of the rows of `[batch, features]`.

    The value is that of `torch.cdist`, from differences: equal rows are at distance 0 exactly.
    Its derivatives are those of the inner products, of every order and in both modes (cdist has
    the first backward one alone). So no difference of two rows is stored.
    """
    still = x.detach()
    distance = torch.cdist(still, still, compute_mode="donot_use_mm_for_euclid_dist")
    centred = x - still.mean(0)  # moves no distance, and keeps the products accurate
    gram = product(centred, centred.mT)
    squares = gram.diagonal()
    moving = squares[:, None] + squares - 2 * gram
    return distance.square() + (moving - moving.detach())


def correlation(x: Tensor, y: Tensor, dim: int, counts: Tensor | None = None) -> Tensor:
    """Pearson's correlation along an axis of the entries that count; 0 for a constant vector."""
    x, y = _deviation(x, dim, counts), _deviation(y, dim, counts)
    squares = x.square().sum(dim).clamp(min=1.0) * y.square().sum(dim).clamp(min=1.0)
    return (x * y).sum(dim) * squares.rsqrt()


def correlation_distance(x: Tensor, y: Tensor, dim: int, counts: Tensor | None = None) -> Tensor:
    """`1 - correlation`, never negative and accurate near equality; 1 for a constant vector."""
    x, y = (_of_length_one(_deviation(z, dim, counts), dim) for z in (x, y))
    vary = (x != 0).any(dim) & (y != 0).any(dim)
    return torch.where(vary, 0.5 * (x - y).square().sum(dim), 1.0)


def _of_length_one(deviation: Tensor, dim: int) -> Tensor:
    """Divided by its length, which is 1 or more, as the largest entry is 1, or 0 throughout."""
    return deviation * deviation.square().sum(dim, keepdim=True).clamp(min=1.0).rsqrt()


def _deviation(x: Tensor, dim: int, counts: Tensor | None) -> Tensor:
    """`x` minus its mean, over its largest entry; 0, without gradient, if it is constant.

    The divisor is a constant to the derivative, since a correlation does not depend on it. So
    neither a square nor a gradient leaves the range of float32.
    """
    centred = _centred(x, dim, counts)
    largest = centred.detach().abs().amax(dim, keepdim=True)
    # What the mean rounds away, and a constant vector is left with; or no normal number.
    limits = torch.finfo(x.dtype)
    rounding = 8 * limits.eps * x.detach().abs().amax(dim, keepdim=True) + 16 * limits.tiny
    varies = largest > rounding
    return torch.where(varies, centred, 0.0) / torch.where(varies, largest, 1.0)


def _centred(x: Tensor, dim: int, counts: Tensor | None) -> Tensor:
    if counts is None:
        return x - x.mean(dim, keepdim=True)
    x = torch.where(counts, x, 0.0)
    mean = x.sum(dim, keepdim=True) / counts.sum(dim, keepdim=True).clamp(min=1)
    return torch.where(counts, x - mean, 0.0)
