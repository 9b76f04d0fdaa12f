"""A queue of embeddings: state of the losses that need more negatives than a batch has."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.checks import covers, whole
from .._shared.masks import fill


class Queue(NamedTuple):
    """The last embeddings, newest first.

    Attributes:
      features: `[size, dim]`.
      valid: `[size]` bool, False where nothing has been stored yet.
    """

    features: Tensor
    valid: Tensor


def queue_init(
    size: int,
    dim: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Queue:
    """An empty queue.

    Args:
      size: how many embeddings it holds.
      dim: their width.
      dtype: of the embeddings.
      device: of the tensors.

    Returns:
      A `Queue` of zeros, none of them valid.

    Example:
      >>> queue_init(4, 2).valid.sum()
      tensor(0)
    """
    whole("queue_init", 1, size=size, dim=dim)
    features = torch.zeros(size, dim, dtype=dtype, device=device)
    return Queue(features, torch.zeros(size, dtype=torch.bool, device=device))


def enqueue(
    queue: Queue,
    x: Float[Tensor, "batch dim"],
    *,
    where: Bool[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
) -> Queue:
    """A queue with a batch in front and its oldest entries dropped; without gradient.

    Args:
      queue: the queue before.
      x: `[batch, dim]`.
      where: `[batch]`, True where an embedding counts. Others take a place that is not valid.

    Returns:
      A new `Queue` of the same size and dtype.

    Example:
      >>> enqueue(queue_init(3, 1), torch.tensor([[1.0], [2.0]])).features.flatten()
      tensor([1., 2., 0.])
    """
    covers("enqueue", where, x.shape[:1])
    (x,) = fill(x.detach(), where=where)
    new = torch.ones_like(x[:, 0], dtype=torch.bool) if where is None else where.bool()
    size = queue.valid.shape[0]
    features = torch.cat([x.to(queue.features.dtype), queue.features])[:size]
    return Queue(features.detach(), torch.cat([new, queue.valid])[:size])
