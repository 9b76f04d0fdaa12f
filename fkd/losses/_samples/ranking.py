"""Losses between rankings: margins, and pairs of candidates (or of classes).

The last axis holds the candidates of one query (or the classes of one position).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.checks import covers, floating, positive, same_shape
from .._shared.masks import fill, keep


def margin_mse(
    student_scores: Float[Tensor, "*batch candidates"],
    teacher_scores: Float[Tensor, "*batch candidates"],
    *,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Squared error of the margins between the positive and its negatives.

        margin_mse = mean_{j >= 1} ((s_0 - s_j) - (t_0 - t_j))^2

    Candidate 0 is the positive. Unchanged when a constant is added to all scores of a model.

    Args:
      student_scores: `[*batch, candidates]`, finite, 2 candidates or more.
      teacher_scores: `[*batch, candidates]`, finite.
      where: `[*batch]`, True where a query counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, non-negative, in squared scores.

    Example:
      >>> margin_mse(torch.tensor([[3.0, 1.0]]), torch.tensor([[0.0, 1.0]]))
      tensor([9.])

    Reference:
      Hofstaetter et al., Improving Efficient Neural Ranking Models with Cross-Architecture
      Knowledge Distillation, arXiv:2010.02666.
    """
    s, t = _scores("margin_mse", student_scores, teacher_scores, where)
    error = s - t
    return keep((error[..., :1] - error[..., 1:]).square().mean(-1), where)


def hinge_ranking(
    student_scores: Float[Tensor, "*batch candidates"],
    teacher_scores: Float[Tensor, "*batch candidates"],
    *,
    margin: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Hinge loss on every pair of candidates that the teacher ranks.

        hinge_ranking = mean over pairs t_i > t_j of max(0, margin - (s_i - s_j))

    Only the teacher's order enters. Memory is candidates^2 a position: for a vocabulary, gather
    both models' logits at the teacher's `top_k` first.

    Args:
      student_scores: `[*batch, candidates]`, finite.
      teacher_scores: `[*batch, candidates]`; no gradient.
      margin: by how much the student is to separate a pair.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, non-negative; 0 where the teacher ranks no pair.

    Example:
      >>> hinge_ranking(torch.tensor([[0.0, 0.5]]), torch.tensor([[1.0, 2.0]]))
      tensor([0.5000])

    Reference:
      Herbrich et al., Large Margin Rank Boundaries for Ordinal Regression, 2000.
    """
    gap, ranked = _pairs("hinge_ranking", student_scores, teacher_scores, where)
    return keep(_mean_of(F.relu(margin - gap), ranked), where)


def logistic_ranking(
    student_scores: Float[Tensor, "*batch candidates"],
    teacher_scores: Float[Tensor, "*batch candidates"],
    *,
    scale: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Logistic loss on every pair of candidates that the teacher ranks (RankNet).

        logistic_ranking = mean over pairs t_i > t_j of log(1 + exp(-scale (s_i - s_j)))

    Only the teacher's order enters. Memory is candidates^2 a position: for a vocabulary, gather
    both models' logits at the teacher's `top_k` first.

    Args:
      student_scores: `[*batch, candidates]`, finite.
      teacher_scores: `[*batch, candidates]`; no gradient.
      scale: > 0, steepness; sigma of the paper.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, non-negative; 0 where the teacher ranks no pair.

    Example:
      >>> logistic_ranking(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 2.0]]))
      tensor([0.6931])

    Reference:
      Burges et al., Learning to Rank using Gradient Descent, ICML 2005.
    """
    positive("logistic_ranking", scale=scale)
    gap, ranked = _pairs("logistic_ranking", student_scores, teacher_scores, where)
    return keep(_mean_of(-F.logsigmoid(scale * gap), ranked), where)


def _scores(
    loss: str, student_scores: Tensor, teacher_scores: Tensor, where: Tensor | None
) -> tuple[Tensor, ...]:
    floating(loss, student_scores=student_scores, teacher_scores=teacher_scores)
    same_shape(loss, student_scores=student_scores, teacher_scores=teacher_scores)
    if student_scores.shape[-1] < 2:
        raise ValueError(
            f"{loss}: student_scores {tuple(student_scores.shape)} has fewer than 2 candidates; "
            "a ranking needs 2 or more on the last axis."
        )
    covers(loss, where, student_scores.shape[:-1])
    return fill(student_scores, teacher_scores, where=where)


def _pairs(
    loss: str, student_scores: Tensor, teacher_scores: Tensor, where: Tensor | None
) -> tuple[Tensor, Tensor]:
    """s_i - s_j, and whether t_i > t_j, `[*batch, candidates, candidates]`."""
    s, t = _scores(loss, student_scores, teacher_scores, where)
    return s.unsqueeze(-1) - s.unsqueeze(-2), t.unsqueeze(-1) > t.unsqueeze(-2)


def _mean_of(values: Tensor, ranked: Tensor) -> Tensor:
    """Mean over the pairs that are ranked; 0 if there is none."""
    return torch.where(ranked, values, 0.0).sum((-2, -1)) / ranked.sum((-2, -1)).clamp(min=1)
