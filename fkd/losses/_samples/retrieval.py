"""Losses between retrievers: distributions over candidates, and over embedding features."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._logits.kl import kl
from .._shared.checks import axes, covers, floating, positive, same_shape
from .._shared.geometry import unit
from .._shared.masks import fill, keep
from .._shared.products import product
from .._shared.softmax import log_probabilities, relative_entropy


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
    floating("listwise_kl", student_scores=student_scores, teacher_scores=teacher_scores)
    same_shape("listwise_kl", student_scores=student_scores, teacher_scores=teacher_scores)
    positive("listwise_kl", temperature=temperature)
    covers("listwise_kl", where, student_scores.shape[:-1])
    covers("listwise_kl", candidates, student_scores.shape, name="candidates")
    if candidates is not None:
        excluded = ~candidates.bool()
        empty = excluded.all(-1, keepdim=True)
        student_scores = student_scores.masked_fill(excluded, -torch.inf).masked_fill(empty, 0)
        teacher_scores = teacher_scores.masked_fill(excluded, -torch.inf).masked_fill(empty, 0)
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

    Multiple negatives, with the teacher's scores instead of labels. Relational. Not
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
    student = _cosines(where, student_queries=student_queries, student_documents=student_documents)
    teacher = _cosines(where, teacher_queries=teacher_queries, teacher_documents=teacher_documents)
    if student.shape != teacher.shape:
        raise ValueError(
            f"in_batch_kl: student_queries {tuple(student_queries.shape)} and teacher_queries "
            f"{tuple(teacher_queries.shape)} must have the same batch size."
        )
    log_q, log_p = log_probabilities("in_batch_kl", student, teacher, temperature, where)
    return keep(relative_entropy(log_p, log_q), where)


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
    return keep(scale * relative_entropy(log_p, log_q), where)


def _cosines(where: Tensor | None, /, **pair: Tensor) -> Tensor:
    """Of queries and documents, `[batch, batch]`; -inf for documents that do not count."""
    floating("in_batch_kl", **pair)
    axes("in_batch_kl", "batch features", **pair)
    same_shape("in_batch_kl", **pair)
    covers("in_batch_kl", where, next(iter(pair.values())).shape[:1])
    q, d = (unit(x) for x in fill(*pair.values(), where=where))
    cosines = product(q, d.T)
    return cosines if where is None else cosines.masked_fill(~where.bool(), -torch.inf)
