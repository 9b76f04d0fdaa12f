"""A teacher that is known on some classes, as a loss reads it: checked, masked and normalised."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._base.sparse import SampledDistribution, SparseDistribution, TopKDistribution
from .grouped import log_softmax


def same_temperature(loss: str, teacher: SparseDistribution, temperature: float | Tensor) -> None:
    """Refuse a temperature that is not the one of a distribution.

    Raises:
      ValueError: it is another one, or one that may move.
    """
    same = not isinstance(temperature, Tensor) and math.isclose(
        temperature, teacher.temperature, rel_tol=1e-6
    )
    if not same:
        shown = "a tensor" if isinstance(temperature, Tensor) else f"{temperature:g}"
        raise ValueError(
            f"{loss}: temperature is {shown}, and the teacher is known on {teacher.known} of "
            f"{teacher.vocab} classes at temperature {teacher.temperature:g}. Give the term "
            f"temperature={teacher.temperature:g}, or keep the teacher at the temperature of the "
            "term: top_k(k, temperature=...), sampled(n, temperature=...)."
        )


def same_classes(
    loss: str, teacher: SparseDistribution, shape: tuple[int, ...], fix: str = ""
) -> None:
    """Refuse a distribution over other positions or classes than `[*batch, vocab]`.

    Raises:
      ValueError: it is; says both.
    """
    if teacher.shape != tuple(shape):
        raise ValueError(
            f"{loss}: the student's logits are {tuple(shape)}, and the teacher is known on "
            f"{teacher.known} of the classes of {teacher.shape}; the same positions and the same "
            f"vocabulary are expected.{fix}"
        )


def entropy_of(loss: str, teacher: SampledDistribution) -> Tensor:
    """`[*batch]`, the entropy of a teacher that is drawn from.

    Raises:
      ValueError: it was not kept.
    """
    if teacher.entropy is None:
        raise ValueError(
            f"{loss}: the entropy of the teacher is not known, only classes drawn from it. Use "
            "soft_cross_entropy, which has the same gradient; or give the distribution its entropy."
        )
    return teacher.entropy


def filled(
    teacher: SparseDistribution, dtype: torch.dtype, where: Tensor | None
) -> SparseDistribution:
    """A distribution with int64 ids and entries of a dtype, all 0 where a position does not
    count."""

    def wide(x: Tensor) -> Tensor:
        x = x.to(dtype) if x.is_floating_point() else x.long()
        if where is None:
            return x
        excluded = ~where.bool()
        return x.masked_fill(excluded.reshape(excluded.shape + (1,) * (x.ndim - where.ndim)), 0)

    return teacher.map(wide)


def listed_log_p(teacher: TopKDistribution) -> Tensor:
    """`[*batch, k (+ 1)]`, log p of the listed classes, and of all others together if they have
    any. Normalised, since half precision rounds each entry by itself."""
    if teacher.log_rest is None:
        return F.log_softmax(teacher.log_probs, dim=-1)
    every = torch.cat([teacher.log_probs, teacher.log_rest.unsqueeze(-1)], dim=-1)
    return log_softmax(every)
