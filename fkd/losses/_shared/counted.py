"""How a loss says which positions count, when its arguments say it rather than `where`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

Loss = TypeVar("Loss", bound=Callable[..., Any])


def counted_where(fn: Callable[..., Tensor]) -> Callable[[Loss], Loss]:
    """Attach to a loss the positions that its mean counts.

    A loss is 0 at a position it ignores (`labels == ignore_index`), and its values do not
    show whether a 0 was ignored. `loss.counted_where` is `fn`. The loss itself is returned,
    neither wrapped nor changed.

    Args:
      fn: takes, by name, any of the arguments of the loss; returns the positions that count,
        bool, of the shape of the values.

    Example:
      >>> import torch
      >>> from fkd.losses import counted_where
      >>> @counted_where(lambda labels: labels >= 0)
      ... def error(student, labels):
      ...     return (student - labels).square() * (labels >= 0)
      >>> error.counted_where(labels=torch.tensor([3, -1]))
      tensor([ True, False])
    """

    def attach(loss: Loss) -> Loss:
        loss.counted_where = fn  # pyright: ignore[reportFunctionMemberAccess]
        return loss

    return attach
