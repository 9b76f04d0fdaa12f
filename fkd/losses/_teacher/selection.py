"""Masks that say which of a teacher's predictions are worth learning from."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.checks import between, covers, floating
from .._shared.labels import check_labels


def least_wrong(
    teacher_scores: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    *,
    fraction: float | Tensor = 0.75,
    where: Bool[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
) -> Bool[Tensor, " batch"]:
    """Where the teacher is right, or among the least wrong of the batch (SSKD).

        error_b = number of classes that the teacher puts above label y_b
        least_wrong_b = error_b = 0, or among the floor(fraction * wrong) smallest errors > 0

    A mask for `where=` of another loss. Ties go to the earlier sample. SSKD keeps 3/4 of the
    wrong self-supervised predictions (cosines of a sample to all others, whose label is itself)
    and all of the wrong predictions on transformed pictures. Its losses are `listwise_kl`
    of the cosines and `kl`.

    Args:
      teacher_scores: `[batch, classes]`, finite: logits, or similarities.
      labels: `[batch]`, integers from 0 to classes - 1; anything where `where` is False.
      fraction: from 0 to 1, how many of the wrong ones are kept.
      where: `[batch]`, True where a sample counts. The others are not kept.

    Returns:
      `[batch]`, bool.

    Example:
      >>> scores = torch.tensor([[3.0, 2.0, 1.0]]).expand(3, 3)
      >>> least_wrong(scores, torch.tensor([0, 2, 1]), fraction=0.5)
      tensor([ True, False,  True])

    Reference:
      Xu et al., Knowledge Distillation Meets Self-Supervision, arXiv:2006.07114.
    """
    floating("least_wrong", teacher_scores=teacher_scores)
    check_labels("least_wrong", teacher_scores, labels)
    between("least_wrong", 0, 1, fraction=fraction)
    covers("least_wrong", where, labels.shape)
    counts = torch.ones_like(labels, dtype=torch.bool) if where is None else where.bool()
    index = labels.masked_fill(~counts, 0).long()[:, None]
    error = (teacher_scores > teacher_scores.gather(-1, index)).sum(-1)
    wrong = (error > 0) & counts
    last = teacher_scores.shape[-1]  # behind every error
    order = torch.where(wrong, error, last).argsort(stable=True).argsort()
    # The small number keeps 0.9 * 10 from being 8.999 in float32.
    allowed = torch.floor(fraction * wrong.sum() + 1e-4)
    return counts & ((error == 0) | (wrong & (order < allowed)))
