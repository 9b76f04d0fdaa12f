"""Multi-granularity structural distillation (MGSKD): relations of tokens, spans and samples.

The paper matches `mgskd_pair` + `mgskd_angle` of the tokens and of the spans (`pool_spans`) in
the lower layers, and `mgskd_sample` of mean-pooled sequences in the upper ones.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..._base.mean import divide
from .._shared.checks import axes, covers, per_sample, whole
from .._shared.geometry import counted, huber, unit
from .._shared.masks import keep
from .._shared.products import product
from .maps import attention_mse
from .pairs import log_softmax_keys, pair_mask
from .tokens import same_tokens


def mgskd_pair(
    student_x: Float[Tensor, "*batch token student_hidden"],
    teacher_x: Float[Tensor, "*batch token teacher_hidden"],
    *,
    relation_heads: int = 1,
    where: Bool[Tensor, "*batch token"] | Int[Tensor, "*batch token"] | None = None,
) -> Float[Tensor, "*batch token"]:
    """Squared difference of the scaled dot products of tokens or spans, mean over heads.

        l_i = 1/(A n) sum_a sum_j (s_ai . s_aj / sqrt(d_s) - t_ai . t_aj / sqrt(d_t))^2

    Args:
      student_x: `[*batch, token, student_hidden]`, tokens or spans of one layer.
      teacher_x: `[*batch, token, teacher_hidden]`.
      relation_heads: A, a divisor of both hidden sizes; the paper takes 64.
      where: `[*batch, token]`, True for tokens that count. Others yield 0 and no gradient.

    Returns:
      `[*batch, token]`, non-negative.

    Example:
      >>> x = torch.rand(2, 5, 8)
      >>> mgskd_pair(x, x, relation_heads=4).max()
      tensor(0.)

    Reference:
      Liu et al., Multi-Granularity Structural Knowledge Distillation, ACL 2022.
    """
    student_x, teacher_x = same_tokens("mgskd_pair", student_x, teacher_x, where)
    s = _products("mgskd_pair", student_x, relation_heads)
    t = _products("mgskd_pair", teacher_x, relation_heads)
    return attention_mse(s, t, where=where)


def mgskd_angle(
    student_x: Float[Tensor, "*batch token student_hidden"],
    teacher_x: Float[Tensor, "*batch token teacher_hidden"],
    *,
    vertices: int = 20,
    neighbours: int = 20,
    relation_heads: int = 1,
    where: Bool[Tensor, "*batch token"] | Int[Tensor, "*batch token"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Smooth L1 distance of the angles at the tokens that the teacher finds most salient.

        l = mean over j in V, i != k in N(j) of smooth_l1(cos_s(i, j, k), cos_t(i, j, k))
        cos(i, j, k) = <x_i - x_j, x_k - x_j> / (|x_i - x_j| |x_k - x_j|)

    V are the tokens that get the most of the teacher's relation p_ai = softmax_j(t_ai . t_aj /
    sqrt(d)), summed over heads a and queries; N(j) the other tokens to which j gives the most.
    The choice has no gradient.

    Args:
      student_x: `[*batch, token, student_hidden]`, tokens or spans of one layer.
      teacher_x: `[*batch, token, teacher_hidden]`.
      vertices: |V| >= 1, all tokens if there are fewer.
      neighbours: |N(j)| >= 1, all tokens if there are fewer.
      relation_heads: of the relation that chooses, a divisor of the teacher's hidden size.
      where: `[*batch, token]`, True for tokens that count. Others are in no triple.

    Returns:
      `[*batch]`, in [0, 1.5]. 0 for a sequence of fewer than three tokens.

    Example:
      >>> x = torch.rand(2, 5, 8)
      >>> mgskd_angle(x, 3 * x + 1).max() < 1e-5
      tensor(True)

    Reference:
      Liu et al., Multi-Granularity Structural Knowledge Distillation, ACL 2022.
    """
    whole("mgskd_angle", 1, vertices=vertices, neighbours=neighbours)
    student_x, teacher_x = same_tokens("mgskd_angle", student_x, teacher_x, where)
    v, n = _salient(teacher_x, relation_heads, vertices, neighbours, where)
    counts = torch.ones_like(student_x[..., 0]) if where is None else where.to(student_x.dtype)
    triples = _triples(counts, v, n)
    values = huber(_angles(student_x, v, n), _angles(teacher_x, v, n)) * triples
    return divide(values.sum((-3, -2, -1)), triples.sum((-3, -2, -1)))


def mgskd_sample(
    student_features: Float[Tensor, "batch student_hidden"],
    teacher_features: Float[Tensor, "batch teacher_hidden"],
    *,
    relation_heads: int = 1,
    where: Bool[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """Smooth L1 distance of the angles that any two samples make at a third, mean over heads.

        l_j = 1/(A n^2) sum_a sum_ik smooth_l1(cos_s(i, j, k), cos_t(i, j, k))

    The angles of every relation head are those of `rkd_angle`; with one head it is that loss.

    Args:
      student_features: `[batch, student_hidden]`, sequences pooled over their tokens.
      teacher_features: `[batch, teacher_hidden]`.
      relation_heads: A, a divisor of both hidden sizes; the paper takes 64.
      where: `[batch]`, True where a sample counts; n is the number of those.

    Returns:
      `[batch]`, one value per sample (as the vertex), in [0, 1.5].

    Example:
      >>> x = torch.rand(5, 8)
      >>> mgskd_sample(x, 3 * x + 1, relation_heads=2).max() < 1e-5
      tensor(True)

    Reference:
      Liu et al., Multi-Granularity Structural Knowledge Distillation, ACL 2022.
    """
    name = "mgskd_sample"
    axes(name, "batch hidden", student_features=student_features, teacher_features=teacher_features)
    student, teacher = per_sample(
        name, where, student_features=student_features, teacher_features=teacher_features
    )
    covers(name, where, student.shape[:-1])
    weight, count = counted(where, student)
    s = _sample_cosines(_split(name, student, relation_heads))
    t = _sample_cosines(_split(name, teacher, relation_heads))
    values = product(product(huber(s, t), weight), weight) / count**2
    return keep(values.mean(0), where)


def _split(loss: str, x: Tensor, heads: int) -> Tensor:
    """`[*batch, head, row, head_dim]` from `[*batch, row, hidden]`."""
    if heads < 1 or x.shape[-1] % heads:
        raise ValueError(
            f"{loss}: relation_heads {heads}; a divisor of the hidden size {x.shape[-1]} is "
            "expected."
        )
    return x.unflatten(-1, (heads, x.shape[-1] // heads)).transpose(-2, -3)


def _products(loss: str, x: Tensor, heads: int) -> Tensor:
    x = _split(loss, x, heads)
    return product(x, x.mT) / math.sqrt(x.shape[-1])


def _sample_cosines(x: Tensor) -> Tensor:
    """`[head, vertex, sample, sample]`."""
    sides = unit(x.unsqueeze(-3) - x.unsqueeze(-2))
    return product(sides, sides.mT)


def _salient(
    teacher: Tensor, heads: int, vertices: int, neighbours: int, where: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Indices `[*batch, vertex]` and `[*batch, vertex, neighbour]`."""
    length = teacher.shape[-2]
    scores = _products("mgskd_angle", teacher, heads)
    p = log_softmax_keys(scores, pair_mask(scores, where, where)).exp().sum(-3)
    if where is not None:
        p = p * (where[..., :, None] * where[..., None, :]).to(p.dtype)
    v = p.sum(-2).topk(min(vertices, length), dim=-1).indices
    p = p - 2 * torch.eye(length, dtype=p.dtype, device=p.device) * heads
    n = p.topk(min(neighbours, length), dim=-1).indices
    return v, n.gather(-2, v.unsqueeze(-1).expand(*v.shape, n.shape[-1]))


def _angles(x: Tensor, v: Tensor, n: Tensor) -> Tensor:
    """`[*batch, vertex, neighbour, neighbour]`: cosines at the vertices."""
    vertex = x.gather(-2, v.unsqueeze(-1).expand(*v.shape, x.shape[-1]))
    flat = n.flatten(-2).unsqueeze(-1)
    around = x.gather(-2, flat.expand(*flat.shape[:-1], x.shape[-1])).unflatten(-2, n.shape[-2:])
    sides = unit(around - vertex.unsqueeze(-2))
    return product(sides, sides.mT)


def _triples(counts: Tensor, v: Tensor, n: Tensor) -> Tensor:
    """1 where all three tokens count and differ."""
    ends = counts.gather(-1, n.flatten(-2)).unflatten(-1, n.shape[-2:]) * (n != v.unsqueeze(-1))
    triples = ends[..., :, None] * ends[..., None, :] * counts.gather(-1, v)[..., None, None]
    return triples * (1 - torch.eye(n.shape[-1], dtype=counts.dtype, device=counts.device))
