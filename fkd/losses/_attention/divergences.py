"""Divergences between attention maps `[*batch, head, query, key]` of two models.

Tokens that do not count are left out as queries and as keys. `where` `[*batch, query]` is the
attention mask of the batch in self-attention; cross-attention has a `key_where` of its own.
"""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.masks import fill, keep
from .pairs import attention_masks, log_softmax_keys, normalized, pair_mask, safe_log


def attention_kl(
    student_probabilities: Float[Tensor, "*batch head query key"],
    teacher_probabilities: Float[Tensor, "*batch head query key"],
    *,
    where: Bool[Tensor, "*batch query"] | Int[Tensor, "*batch query"] | None = None,
    key_where: Bool[Tensor, "*batch key"] | Int[Tensor, "*batch key"] | None = None,
) -> Float[Tensor, "*batch query"]:
    """KL divergence of the student's attention from the teacher's, mean over heads.

        l_i = 1/H sum_h sum_j p_hij (log p_hij - log q_hij)

    p (teacher) and q (student) are renormalised over the keys that count, so probability that
    a model gives to padding plays no part. 0 log 0 = 0. Where the student's probability has
    underflowed to 0 and the teacher's has not, it counts as the smallest normal number: the
    divergence is large and finite. `attention_scores_kl` has no such limit.

    MiniLM uses it with `minilm_relation` of the values; MobileBERT with `mse` of feature maps.

    Args:
      student_probabilities: `[*batch, head, query, key]`, non-negative: attention after the
        softmax. Where the numbers of heads differ, use `match_heads`.
      teacher_probabilities: `[*batch, head, query, key]`.
      where: `[*batch, query]`, True for tokens that count. Others yield 0 and no gradient.
      key_where: `[*batch, key]`, the same for the keys. Default: `where`.

    Returns:
      `[*batch, query]`, non-negative, in nats.

    Example:
      >>> p = torch.tensor([[[[0.5, 0.5], [1.0, 0.0]]]])
      >>> attention_kl(p, p)
      tensor([[0., 0.]])

    Reference:
      Wang et al., MiniLM: Deep Self-Attention Distillation, arXiv:2002.10957;
      Sun et al., MobileBERT, arXiv:2004.02984.
    """
    names = ("student_probabilities", "teacher_probabilities")
    q, p = student_probabilities, teacher_probabilities
    where, key_where = attention_masks("attention_kl", q, p, where, key_where, names)
    pairs = pair_mask(q, where, key_where)
    q, p = (normalized(x, pairs) for x in fill(q, p, where=None))
    divergence = (p * (safe_log(p) - safe_log(q))).sum(-1)
    return keep(divergence.mean(-2), where)


def attention_scores_kl(
    student_scores: Float[Tensor, "*batch head query key"],
    teacher_scores: Float[Tensor, "*batch head query key"],
    *,
    where: Bool[Tensor, "*batch query"] | Int[Tensor, "*batch query"] | None = None,
    key_where: Bool[Tensor, "*batch key"] | Int[Tensor, "*batch key"] | None = None,
) -> Float[Tensor, "*batch query"]:
    """`attention_kl` from the scores before the softmax: the softmax is taken over valid keys.

        l_i = 1/H sum_h sum_j p_hij (log p_hij - log q_hij),   p = softmax_j(t), q = softmax_j(s)

    Args:
      student_scores: `[*batch, head, query, key]`. `-inf` means probability 0.
      teacher_scores: `[*batch, head, query, key]`.
      where: `[*batch, query]`, True for tokens that count. Others yield 0 and no gradient.
      key_where: `[*batch, key]`, the same for the keys. Default: `where`.

    Returns:
      `[*batch, query]`, non-negative, in nats.

    Example:
      >>> s = torch.tensor([[[[0.0, float("-inf")], [1.0, 2.0]]]])
      >>> attention_scores_kl(s, s)
      tensor([[0., 0.]])

    Reference:
      Wang et al., MiniLM: Deep Self-Attention Distillation, arXiv:2002.10957.
    """
    names = ("student_scores", "teacher_scores")
    s, t = student_scores, teacher_scores
    where, key_where = attention_masks("attention_scores_kl", s, t, where, key_where, names)
    pairs = pair_mask(s, where, key_where)
    log_q, log_p = (log_softmax_keys(x, pairs) for x in fill(s, t, where=None))
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
    return keep(divergence.mean(-2), where)


def attention_cross_entropy(
    student_probabilities: Float[Tensor, "*batch head query key"],
    teacher_probabilities: Float[Tensor, "*batch head query key"],
    *,
    where: Bool[Tensor, "*batch query"] | Int[Tensor, "*batch query"] | None = None,
    key_where: Bool[Tensor, "*batch key"] | Int[Tensor, "*batch key"] | None = None,
) -> Float[Tensor, "*batch query"]:
    """Cross-entropy of the student's attention under the teacher's, mean over heads.

        l_i = -1/H sum_h sum_j p_hij log q_hij

    `attention_kl` plus the entropy of the teacher's attention: the same gradient for the
    student, and a value that is not 0 at equality. p and q are renormalised over the keys that
    count (TextBrewer leaves their probability with padding). TextBrewer's variant on the mean
    of the heads is this loss of the softmax of `match_heads(scores, 1)`.

    Args:
      student_probabilities: `[*batch, head, query, key]`, non-negative: attention after the
        softmax. Where the numbers of heads differ, use `match_heads`.
      teacher_probabilities: `[*batch, head, query, key]`.
      where: `[*batch, query]`, True for tokens that count. Others yield 0 and no gradient.
      key_where: `[*batch, key]`, the same for the keys. Default: `where`.

    Returns:
      `[*batch, query]`, at least the entropy of the teacher's attention, in nats.

    Example:
      >>> p = torch.tensor([[[[0.5, 0.5], [1.0, 0.0]]]])
      >>> attention_cross_entropy(p, p)
      tensor([[0.6931, 0.0000]])

    Reference:
      Yang et al., TextBrewer, arXiv:2002.12620.
    """
    names = ("student_probabilities", "teacher_probabilities")
    q, p = student_probabilities, teacher_probabilities
    where, key_where = attention_masks("attention_cross_entropy", q, p, where, key_where, names)
    pairs = pair_mask(q, where, key_where)
    q, p = (normalized(x, pairs) for x in fill(q, p, where=None))
    entropy = -(p * safe_log(q)).sum(-1)
    return keep(entropy.mean(-2), where)
