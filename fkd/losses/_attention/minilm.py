"""Relations between the query, key or value vectors of the tokens of one sequence (MiniLM)."""

from __future__ import annotations

import math

from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.checks import covers, floating
from .._shared.masks import fill, keep
from .._shared.products import product
from .pairs import log_softmax_keys, pair_mask


def minilm_relation(
    student_x: Float[Tensor, "*student_shape"],
    teacher_x: Float[Tensor, "*teacher_shape"],
    *,
    relation_heads: int,
    where: Bool[Tensor, "*batch length"] | Int[Tensor, "*batch length"] | None = None,
) -> Float[Tensor, "*batch length"]:
    """KL divergence between token-to-token relations of query, key or value vectors.

        l_i = 1/A sum_a sum_j p_aij (log p_aij - log q_aij)
        p_a = softmax_j(t_ai . t_aj / sqrt(d_t)),   q_a = softmax_j(s_ai . s_aj / sqrt(d_s))

    The heads of a model are concatenated and split again into A relation heads of the size
    d = hidden / A, so the two models may differ in heads and in hidden size. Over tokens that
    count only, as queries i and as keys j.

    MiniLM (v1) of the last layers is `attention_kl(maps)` + `minilm_relation(values)` with the
    number of attention heads. MiniLMv2 is the sum of three terms, `minilm_relation` of the
    queries, of the keys and of the values, with 48 relation heads for a base model.

    Args:
      student_x: query, key or value vectors, `[batch, length, hidden]`, or split in heads,
        `[batch, head, length, head_dim]`. Without a batch, only `[length, hidden]`.
      teacher_x: the same for the teacher, of any hidden size and number of heads.
      relation_heads: A, a divisor of both hidden sizes.
      where: `[batch, length]`, True for tokens that count. Others yield 0 and no gradient.

    Returns:
      `[batch, length]`, non-negative, in nats.

    Example:
      >>> values = torch.eye(4).expand(2, 4, 4)
      >>> minilm_relation(values, 2 * values, relation_heads=2).shape
      torch.Size([2, 4])

    Reference:
      Wang et al., MiniLM, arXiv:2002.10957;
      Wang et al., MiniLMv2: Multi-Head Self-Attention Relation Distillation, arXiv:2012.15828.
    """
    floating("minilm_relation", student_x=student_x, teacher_x=teacher_x)
    s = _merge_heads("student_x", student_x)
    t = _merge_heads("teacher_x", teacher_x)
    _check(s, t, relation_heads, where)
    s, t = fill(s, t, where=where)
    s, t = _relation_scores(s, relation_heads), _relation_scores(t, relation_heads)
    pairs = pair_mask(s, where, where)
    log_q, log_p = log_softmax_keys(s, pairs), log_softmax_keys(t, pairs)
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
    return keep(divergence.mean(-2), where)


def _merge_heads(name: str, x: Tensor) -> Tensor:
    """`[*batch, length, hidden]`."""
    if x.ndim not in (2, 3, 4):
        raise ValueError(
            f"minilm_relation: {name} {tuple(x.shape)}; [batch, length, hidden] or "
            "[batch, head, length, head_dim] is expected."
        )
    return x.transpose(-2, -3).flatten(-2) if x.ndim == 4 else x


def _relation_scores(x: Tensor, heads: int) -> Tensor:
    """`[*batch, heads, length, length]`."""
    x = x.unflatten(-1, (heads, x.shape[-1] // heads)).transpose(-2, -3)
    return product(x, x.transpose(-1, -2)) / math.sqrt(x.shape[-1])


def _check(student: Tensor, teacher: Tensor, heads: int, where: Tensor | None) -> None:
    if student.shape[:-1] != teacher.shape[:-1]:
        raise ValueError(
            f"minilm_relation: student_x and teacher_x have batch and length "
            f"{tuple(student.shape[:-1])} and {tuple(teacher.shape[:-1])}; equal ones are expected."
        )
    for name, x in {"student_x": student, "teacher_x": teacher}.items():
        if heads < 1 or x.shape[-1] % heads:
            raise ValueError(
                f"minilm_relation: relation_heads {heads}; a divisor of the hidden size "
                f"{x.shape[-1]} of {name} is expected."
            )
    covers("minilm_relation", where, student.shape[:-1])
