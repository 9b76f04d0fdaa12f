"""Losses between scores of candidates: rankers, retrievers, and rankings of classes.

The last axis holds the candidates of one query (or the classes of one position).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ._logits import kl
from ._numerics import fill, floating, keep, same_shape
from ._softmax import cross, log_probabilities


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
    gap, ranked = _pairs("logistic_ranking", student_scores, teacher_scores, where)
    return keep(_mean_of(-F.logsigmoid(scale * gap), ranked), where)


def listwise_kl(
    student_scores: Float[Tensor, "*batch candidates"],
    teacher_scores: Float[Tensor, "*batch candidates"],
    *,
    candidates: Bool[Tensor, "*batch candidates"] | None = None,
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """KL divergence between distributions over the candidates of a query.

        listwise_kl = T^2 * sum_j p_j (log p_j - log q_j)
        p = softmax(teacher_scores / T),  q = softmax(student_scores / T)

    `kl` on scores, with lists of unequal length.

    Args:
      student_scores: `[*batch, candidates]`.
      teacher_scores: `[*batch, candidates]`.
      candidates: `[*batch, candidates]`, True where a place holds a candidate; all if None. A
        list without candidates yields 0.
      temperature: T > 0, a number or a tensor `[*batch, 1]`, one T a query.
      where: `[*batch]`, True where a query counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, non-negative, in nats.

    Example:
      >>> listwise_kl(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0]]))
      tensor([0.])

    Reference:
      Lin et al., Distilling Dense Representations for Ranking using Tightly-Coupled Teachers,
      arXiv:2010.11386.
    """
    if candidates is not None:
        same_shape("listwise_kl", candidates=candidates, student_scores=student_scores)
        empty = ~candidates.any(-1, keepdim=True)
        student_scores = student_scores.masked_fill(~candidates, -torch.inf).masked_fill(empty, 0)
        teacher_scores = teacher_scores.masked_fill(~candidates, -torch.inf).masked_fill(empty, 0)
    return kl(student_scores, teacher_scores, temperature=temperature, where=where)


def in_batch_kl(
    student_queries: Float[Tensor, "batch student_features"],
    teacher_queries: Float[Tensor, "batch teacher_features"],
    student_documents: Float[Tensor, "batch student_features"],
    teacher_documents: Float[Tensor, "batch teacher_features"],
    *,
    temperature: float | Tensor = 0.05,
    where: Bool[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """KL divergence between the scores of a query with all documents of the batch.

        in_batch_kl_i = sum_j p_ij (log p_ij - log q_ij)
        p_i = softmax_j(cos(teacher_query_i, teacher_document_j) / T),  q_i of the student

    Multiple negatives, with the teacher's scores in the place of labels. Relational. Not
    multiplied by T^2, since T is the scale of the scores. A vector of zeros has cosines of 0.

    Args:
      student_queries: `[batch, student_features]`.
      teacher_queries: `[batch, teacher_features]`.
      student_documents: `[batch, student_features]`, document i belongs to query i.
      teacher_documents: `[batch, teacher_features]`.
      temperature: T > 0.
      where: `[batch]`, True where a pair counts. Others yield 0; their documents are no
        candidates.

    Returns:
      `[batch]`, non-negative, in nats.

    Example:
      >>> x, y = torch.eye(2), torch.eye(2).flip(0)
      >>> in_batch_kl(x, x, y, y)
      tensor([0., 0.])

    Reference:
      Kim et al., EmbedDistill: A Geometric Knowledge Distillation for Information Retrieval,
      arXiv:2301.12005.
    """
    student = _cosines("in_batch_kl", student_queries, student_documents, where)
    teacher = _cosines("in_batch_kl", teacher_queries, teacher_documents, where)
    log_q, log_p = log_probabilities("in_batch_kl", student, teacher, temperature, where)
    return keep(cross(log_p.exp(), log_p - log_q), where)


def adaptive_layer_kl(
    student_embeddings: Float[Tensor, "*batch features"],
    teacher_embeddings: Float[Tensor, "*batch features"],
    *,
    temperature: float | Tensor = 0.3,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """KL divergence from a final embedding to an earlier layer's, as softmax distributions.

        adaptive_layer_kl = T * sum_d p_d (log p_d - log q_d)
        p = softmax(teacher / T) over the features,  q = softmax(student / T)

    `kl` over T: the published implementation multiplies by T, not T^2.

    Args:
      student_embeddings: `[*batch, features]`, of an earlier layer.
      teacher_embeddings: `[*batch, features]`, of the last layer.
      temperature: T > 0, a number or a tensor `[*batch, 1]`.
      where: `[*batch]`, True where a sample counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, non-negative, in nats.

    Example:
      >>> adaptive_layer_kl(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0]]))
      tensor([0.])

    Reference:
      Li et al., 2D Matryoshka Sentence Embeddings, arXiv:2402.14776.
    """
    log_q, log_p = log_probabilities(
        "adaptive_layer_kl", student_embeddings, teacher_embeddings, temperature, where
    )
    scale = temperature.squeeze(-1) if isinstance(temperature, Tensor) else temperature
    return keep(scale * cross(log_p.exp(), log_p - log_q), where)


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


def _cosines(loss: str, queries: Tensor, documents: Tensor, where: Tensor | None) -> Tensor:
    """`[batch, batch]`; -inf for documents that do not count."""
    floating(loss, queries=queries, documents=documents)
    same_shape(loss, queries=queries, documents=documents)
    q, d = (
        x * x.square().sum(-1, keepdim=True).clamp(min=1e-24).rsqrt()
        for x in fill(queries, documents, where=where)
    )
    cosines = q @ d.T
    return cosines if where is None else cosines.masked_fill(~where.bool(), -torch.inf)
