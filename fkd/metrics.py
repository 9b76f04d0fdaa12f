"""Metrics: functions of tensors like losses, measured and not minimised. See `fkd.metric`."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor


def accuracy(
    logits: Float[Tensor, "*batch classes"],
    labels: Int[Tensor, "*batch"],
    *,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """1 where the greatest logit is that of the label, else 0.

    Args:
      logits: `[*batch, classes]`.
      labels: `[*batch]`, class numbers.
      where: `[*batch]`, True where a position counts.

    Example:
      >>> accuracy(torch.tensor([[0.0, 1.0], [2.0, 1.0]]), torch.tensor([1, 1]))
      tensor([1., 0.])
    """
    return _kept((logits.argmax(-1) == labels).float(), where)


def agreement(
    student_logits: Float[Tensor, "*batch classes"],
    teacher_logits: Float[Tensor, "*batch classes"],
    *,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """1 where student and teacher have the same first choice, else 0.

    Args:
      student_logits: `[*batch, classes]`.
      teacher_logits: `[*batch, classes]`.
      where: `[*batch]`, True where a position counts.

    Example:
      >>> agreement(torch.tensor([[0.0, 1.0]]), torch.tensor([[-3.0, 5.0]]))
      tensor([1.])
    """
    return _kept((student_logits.argmax(-1) == teacher_logits.argmax(-1)).float(), where)


def _kept(values: Tensor, where: Tensor | None) -> Tensor:
    return values if where is None else values.masked_fill(~where.bool(), 0.0)
