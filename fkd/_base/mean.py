"""The only reduction: a total and a count, merged first and divided last."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Mean(NamedTuple):
    """A mean that has not been divided yet.

    Totals and counts of microbatches, ranks and ragged batches add up, so the mean of a
    batch is the same however the batch is cut.

    Attributes:
      total: `[]`, the sum of the values that count.
      count: `[]`, how many values count.

    Example:
      >>> a = mean(torch.tensor([1.0, 2.0, 9.0]), where=torch.tensor([True, True, False]))
      >>> a.merge(mean(torch.tensor([6.0]))).value
      tensor(3.)
    """

    total: Tensor
    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  # tuple.count is another thing

    @property
    def value(self) -> Tensor:
        """`[]`, total / count; 0 where nothing counts."""
        return divide(self.total, self.count)

    def merge(self, other: Mean) -> Mean:
        """The mean over both sets of values."""
        return Mean(self.total + other.total, self.count + other.count)


class MeanWithParts(NamedTuple):
    """What a loss returns that is several losses in one pass: their sum, and each by its name.

    The sum is the term's value and has its gradient. The parts are logged beside it, as
    `loss/TERM/PART`; they have no gradient.

    Attributes:
      whole: the sum, with all weights in it.
      parts: each, without its weight.

    Example:
      >>> square, size = mean(torch.tensor([1.0, 4.0])), mean(torch.tensor([1.0, 2.0]))
      >>> both = Mean(square.total + size.total, square.count)
      >>> sorted(MeanWithParts(both, {"square": square, "size": size}).parts)
      ['size', 'square']
    """

    whole: Mean
    parts: dict[str, Mean]


def divide(total: Tensor, count: Tensor) -> Tensor:
    """`total / count`, and 0 (with a zero gradient, not nan) where the count is 0."""
    return torch.where(count > 0, total / count.clamp(min=1e-30), 0.0)


def mean(values: Tensor, *, where: Tensor | None = None) -> Mean:
    """Sum and count of the values that count.

    Args:
      values: `[*batch]`.
      where: `[*batch]`, True (or 1) where a value counts; all of them if None. A value that
        does not count may be nan or inf.

    Returns:
      A `Mean`, in float32 or wider.

    Raises:
      ValueError: `where` and `values` differ in shape; nothing is broadcast.

    Example:
      >>> mean(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).value
      tensor(2.5000)
    """
    if values.dtype not in (torch.float32, torch.float64, torch.complex64, torch.complex128):
        values = values.float()  # counts, too: those of booleans and bytes overflow
    if where is None:
        count = torch.full((), float(values.numel()), dtype=values.dtype, device=values.device)
        return Mean(values.sum(), count)
    if where.shape != values.shape:
        raise ValueError(
            f"mean: where {tuple(where.shape)} must have the shape of the values "
            f"{tuple(values.shape)}: one True or False for every value of the loss."
        )
    where = where.bool()
    return Mean(torch.where(where, values, 0.0).sum(), where.sum().to(values.dtype))
