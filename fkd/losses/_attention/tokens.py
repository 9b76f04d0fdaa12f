"""Relations between the tokens of a sequence, between the layers of a token, and spans.

`word_relation` and `word_angle` take the tokens of one layer, `[*batch, token, hidden]`.
`layer_relation` and `layer_angle` take the layers of one token, `[*batch, layer, hidden]`.
The widths of student and teacher may differ.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..._base.mean import divide
from .._shared.checks import covers, floating
from .._shared.geometry import angle_cosines, root, unit
from .._shared.masks import fill, keep
from .._shared.products import product
from .pairs import log_softmax_keys


def word_relation(
    student_x: Float[Tensor, "*batch token student_hidden"],
    teacher_x: Float[Tensor, "*batch token teacher_hidden"],
    *,
    where: Bool[Tensor, "*batch token"] | Int[Tensor, "*batch token"] | None = None,
) -> Float[Tensor, "*batch token"]:
    """KL divergence between the similarities of a token to all other tokens (CKD, pairs).

        l_i = sum_{j != i} p_ij (log p_ij - log q_ij),   p_i = softmax_{j != i} cos(t_i, t_j)

    and q likewise from the student. The paper leaves the distance open; this is the cosine
    version of its code, which takes the mean over all n^2 pairs of a sequence, not the sum over
    j: its value is that of the mean over the tokens divided by n.

    Args:
      student_x: `[*batch, token, student_hidden]`.
      teacher_x: `[*batch, token, teacher_hidden]`.
      where: `[*batch, token]`, True for tokens that count. Others yield 0 and no gradient, and
        are in no pair.

    Returns:
      `[*batch, token]`, non-negative, in nats. 0 for a token without another.

    Example:
      >>> x = torch.rand(2, 5, 8)
      >>> word_relation(x, 3 * x).abs().max() < 1e-5
      tensor(True)

    Reference:
      Park et al., Distilling Linguistic Context for Language Model Compression, arXiv:2109.08359.
    """
    student_x, teacher_x = same_tokens("word_relation", student_x, teacher_x, where)
    return keep(_pair_kl(student_x, teacher_x, where), where)


def layer_relation(
    student_x: Float[Tensor, "*batch layer student_hidden"],
    teacher_x: Float[Tensor, "*batch layer teacher_hidden"],
    *,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """KL divergence between the similarities of a token's layers (CKD, pairs across layers).

        l = 1/n sum_i sum_{j != i} p_ij (log p_ij - log q_ij)
        p_i = softmax_{j != i} cos(t_i, t_j)

    over the n layers; q likewise from the student. Choose as many teacher layers as student
    layers. The authors' code divides by n once more (a mean over all n^2 pairs).

    Args:
      student_x: `[*batch, layer, student_hidden]`.
      teacher_x: `[*batch, layer, teacher_hidden]`.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, non-negative, in nats.

    Example:
      >>> layer_relation(torch.rand(2, 5, 4, 8), torch.rand(2, 5, 4, 16)).shape
      torch.Size([2, 5])

    Reference:
      Park et al., Distilling Linguistic Context for Language Model Compression, arXiv:2109.08359.
    """
    student_x, teacher_x = _layers("layer_relation", student_x, teacher_x, where)
    return keep(_pair_kl(student_x, teacher_x, None).mean(-1), where)


def word_angle(
    student_x: Float[Tensor, "*batch token student_hidden"],
    teacher_x: Float[Tensor, "*batch token teacher_hidden"],
    *,
    window: int | None = None,
    where: Bool[Tensor, "*batch token"] | Int[Tensor, "*batch token"] | None = None,
) -> Float[Tensor, "*batch token"]:
    """Squared difference of the angles that two tokens make at a third (CKD, triples).

        l_j = mean over i != k, both != j, of (cos_s(i, j, k) - cos_t(i, j, k))^2
        cos(i, j, k) = <x_i - x_j, x_k - x_j> / (|x_i - x_j| |x_k - x_j|)

    The mean is over the (n - 1) (n - 2) pairs that make an angle. The authors' code divides the
    same sum by all n^3 triples of a sequence, those with equal members among them.

    Args:
      student_x: `[*batch, token, student_hidden]`.
      teacher_x: `[*batch, token, teacher_hidden]`.
      window: i and k are at most this many tokens away from j; memory is then
        `token * window * hidden` instead of `token^2 * (token + hidden)`. All tokens if None.
      where: `[*batch, token]`, True for tokens that count. Others yield 0 and no gradient, and
        are in no triple.

    Returns:
      `[*batch, token]`, in [0, 4]. 0 for a token without two others.

    Example:
      >>> x = torch.rand(2, 5, 8)
      >>> word_angle(x, 3 * x + 1, window=2).abs().max() < 1e-5
      tensor(True)

    Reference:
      Park et al., Distilling Linguistic Context for Language Model Compression, arXiv:2109.08359.
    """
    student_x, teacher_x = same_tokens("word_angle", student_x, teacher_x, where)
    if window is not None and window < 1:
        raise ValueError(f"word_angle: window {window}; at least 1 token, or None, is expected.")
    return keep(_angle_mse(student_x, teacher_x, where, window), where)


def layer_angle(
    student_x: Float[Tensor, "*batch layer student_hidden"],
    teacher_x: Float[Tensor, "*batch layer teacher_hidden"],
    *,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Squared difference of the angles between a token's layers (CKD, triples across layers).

        l = 1/n sum_j mean over i != k, both != j, of (cos_s(i, j, k) - cos_t(i, j, k))^2

    The authors' code divides by all n^3 triples, as for `word_angle`.

    Args:
      student_x: `[*batch, layer, student_hidden]`.
      teacher_x: `[*batch, layer, teacher_hidden]`.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, in [0, 4].

    Example:
      >>> layer_angle(torch.rand(2, 5, 4, 8), torch.rand(2, 5, 4, 16)).shape
      torch.Size([2, 5])

    Reference:
      Park et al., Distilling Linguistic Context for Language Model Compression, arXiv:2109.08359.
    """
    student_x, teacher_x = _layers("layer_angle", student_x, teacher_x, where)
    return keep(_angle_mse(student_x, teacher_x, None, None).mean(-1), where)


def pool_spans(
    x: Float[Tensor, "*batch token hidden"], spans: Bool[Tensor, "*batch span token"]
) -> Float[Tensor, "*batch span hidden"]:
    """Mean of the tokens of every span, for relations between words, phrases or sentences.

        y_k = sum_i m_ki x_i / sum_i m_ki

    With one span that holds every token of a sequence, this is the mean over its tokens. An
    empty span (padding) is 0: pass `where=spans.any(-1)` to the loss.

    Args:
      x: `[*batch, token, hidden]`; tokens in no span may be nan.
      spans: `[*batch, span, token]`, True where a token belongs to a span.

    Returns:
      `[*batch, span, hidden]`.

    Example:
      >>> x = torch.tensor([[1.0], [3.0], [5.0]])
      >>> pool_spans(x, torch.tensor([[True, True, False], [False, False, True]]))
      tensor([[2.],
              [5.]])

    Reference:
      Liu et al., Multi-Granularity Structural Knowledge Distillation, ACL 2022.
    """
    shape = (*x.shape[:-2], *spans.shape[-2:-1], *x.shape[-2:-1])
    covers("pool_spans", spans, shape, name="spans")
    (x,) = fill(x, where=spans.any(-2))
    weights = spans.to(x.dtype)
    return product(weights, x) / weights.sum(-1, keepdim=True).clamp(min=1.0)


def same_tokens(
    loss: str, student: Tensor, teacher: Tensor, where: Tensor | None
) -> tuple[Tensor, ...]:
    _same_rows(loss, student, teacher)
    covers(loss, where, student.shape[:-1])
    return fill(student, teacher, where=where)


def _layers(
    loss: str, student: Tensor, teacher: Tensor, where: Tensor | None
) -> tuple[Tensor, ...]:
    _same_rows(loss, student, teacher)
    covers(loss, where, student.shape[:-2])
    return fill(student, teacher, where=where)


def _same_rows(loss: str, student_x: Tensor, teacher_x: Tensor) -> None:
    floating(loss, student_x=student_x, teacher_x=teacher_x)
    if student_x.ndim < 2 or student_x.shape[:-1] != teacher_x.shape[:-1]:
        raise ValueError(
            f"{loss}: student_x {tuple(student_x.shape)} and teacher_x {tuple(teacher_x.shape)} "
            "may differ in the last axis only."
        )


def _pair_kl(student: Tensor, teacher: Tensor, where: Tensor | None) -> Tensor:
    """`[*batch, row]`: KL over the other rows that count."""
    n = student.shape[-2]
    pairs = ~torch.eye(n, dtype=torch.bool, device=student.device)
    if where is not None:
        pairs = pairs & where.bool()[..., None, :]
    s, t = unit(student), unit(teacher)
    log_q = log_softmax_keys(product(s, s.mT), pairs)
    log_p = log_softmax_keys(product(t, t.mT), pairs)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _angle_mse(s: Tensor, t: Tensor, where: Tensor | None, window: int | None) -> Tensor:
    """`[*batch, row]`: mean over the ordered pairs of two other rows that count."""
    counts = torch.ones(s.shape[:-1], dtype=s.dtype, device=s.device)
    counts = counts if where is None else where.to(s.dtype)
    s, t = _cosines(s, counts, window), _cosines(t, counts, window)
    counts = _others(counts, window)  # [*batch, vertex, neighbour]
    triples = counts[..., :, None] * counts[..., None, :]
    triples = triples * (1 - torch.eye(triples.shape[-1], dtype=s.dtype, device=s.device))
    squares = (s - t).square() * triples
    return divide(squares.sum((-2, -1)), triples.sum((-2, -1)))


def _cosines(x: Tensor, counts: Tensor, window: int | None) -> Tensor:
    """`[*batch, vertex, neighbour, neighbour]`: of the angles that two rows make at a third."""
    if window is None:
        weight = counts.unsqueeze(-1)
        x = (x - divide((x * weight).sum(-2), weight.sum(-2)).unsqueeze(-2)) * weight
        return angle_cosines(x, root((x.unsqueeze(-3) - x.unsqueeze(-2)).square().sum(-1)))
    around = F.pad(x, (0, 0, window, window)).unfold(-2, 2 * window + 1, 1).mT
    sides = unit(around - x.unsqueeze(-2))
    return product(sides, sides.mT)


def _others(counts: Tensor, window: int | None) -> Tensor:
    """`[*batch, vertex, neighbour]`: 1 where the neighbour counts and is not the vertex."""
    n = counts.shape[-1]
    if window is None:
        return counts.unsqueeze(-2) * (1 - torch.eye(n, dtype=counts.dtype, device=counts.device))
    around = F.pad(counts, (window, window)).unfold(-1, 2 * window + 1, 1)
    offsets = torch.arange(-window, window + 1, device=counts.device)
    return around * (offsets != 0).to(counts.dtype)
