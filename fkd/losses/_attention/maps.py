"""Squared distance of attention maps `[*batch, head, query, key]` of two models.

Tokens that do not count are left out as queries and as keys. `where` `[*batch, query]` is the
attention mask of the batch in self-attention; cross-attention has a `key_where` of its own.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..._base.mean import Mean, divide
from .._shared.checks import floating
from .._shared.masks import keep, upcast
from .pairs import attention_masks, fill_pairs, pair_mask


@overload
def attention_mse(
    student_x: Float[Tensor, "*batch head query key"],
    teacher_x: Float[Tensor, "*batch head query key"],
    *,
    normalize: Literal["query"] = ...,
    where: Bool[Tensor, "*batch query"] | Int[Tensor, "*batch query"] | None = ...,
    key_where: Bool[Tensor, "*batch key"] | Int[Tensor, "*batch key"] | None = ...,
) -> Float[Tensor, "*batch query"]: ...


@overload
def attention_mse(
    student_x: Float[Tensor, "*batch head query key"],
    teacher_x: Float[Tensor, "*batch head query key"],
    *,
    normalize: Literal["pair", "all"],
    where: Bool[Tensor, "*batch query"] | Int[Tensor, "*batch query"] | None = ...,
    key_where: Bool[Tensor, "*batch key"] | Int[Tensor, "*batch key"] | None = ...,
) -> Mean: ...


def attention_mse(
    student_x: Float[Tensor, "*batch head query key"],
    teacher_x: Float[Tensor, "*batch head query key"],
    *,
    normalize: Literal["query", "pair", "all"] = "query",
    where: Bool[Tensor, "*batch query"] | Int[Tensor, "*batch query"] | None = None,
    key_where: Bool[Tensor, "*batch key"] | Int[Tensor, "*batch key"] | None = None,
) -> Float[Tensor, "*batch query"] | Mean:
    """Mean squared error between attention maps: scores before the softmax, or probabilities.

        query:  l_i   = 1/(H n) sum_h sum_j (s_hij - t_hij)^2,   over the n keys j that count
        pair:   total = sum_bhij (s_bhij - t_bhij)^2,            count = H sum_b n_b^2
        all:    the same total,                                  count = H B L^2

    Three conventions are in use, and they agree on batches without padding. With "query" every
    token weighs the same; without a mask the mean of the values is `F.mse_loss`. With "pair"
    every pair of tokens weighs the same, so a sequence of length n weighs n^2; this is what
    masked versions of TinyBERT (TextBrewer, KnowledgeDistillation) compute. With "all" padding
    adds nothing and is counted, so that the value shrinks with it. TinyBERT's own code sets the
    scores of padded keys to 0 and leaves padded queries in: it is "all" with `key_where` alone.

    A pair that both models have masked themselves (a causal mask: a score of `-inf`, or below
    half of the lowest number of its dtype) counts as equal. A pair that only one model has
    masked is infinitely far apart.

    Args:
      student_x: `[*batch, head, query, key]`, scores or probabilities. Where the numbers of
        heads differ, use `match_heads`.
      teacher_x: `[*batch, head, query, key]`.
      normalize: "query" for one value a query, "pair" for a `Mean` over the pairs of tokens,
        "all" for one that is divided by the number of all pairs, padding among them.
      where: `[*batch, query]`, True for tokens that count. Others yield 0 and no gradient.
      key_where: `[*batch, key]`, the same for the keys. Default: `where`.

    Returns:
      `[*batch, query]`, non-negative; or a `Mean` for "pair" and "all".

    Example:
      >>> s, t = torch.zeros(1, 2, 3, 3), torch.ones(1, 2, 3, 3)
      >>> attention_mse(s, t, where=torch.tensor([[1, 1, 0]]))
      tensor([[1., 1., 0.]])

    Reference:
      Jiao et al., TinyBERT: Distilling BERT for Natural Language Understanding, arXiv:1909.10351.
    """
    if normalize not in ("query", "pair", "all"):
        raise ValueError(
            f"attention_mse: normalize {normalize!r}; 'query' (a value a token), 'pair' or 'all' "
            "(a Mean over pairs of tokens) is expected."
        )
    where, key_where = attention_masks("attention_mse", student_x, teacher_x, where, key_where)
    pairs = pair_mask(student_x, where, key_where)
    both = _masked(student_x) & _masked(teacher_x)
    counts = ~both if pairs is None else pairs & ~both
    squares = _difference(student_x, teacher_x, counts).square()
    if normalize != "query":
        pairs = None if normalize == "all" else pairs
        number = torch.ones_like(squares) if pairs is None else pairs.to(squares.dtype)
        return Mean(squares.sum(), number.expand_as(squares).sum())
    return keep(_mean_keys(squares.mean(-3), key_where), where)


def match_heads(
    x: Float[Tensor, "*batch head query key"],
    heads: int,
    *,
    how: Literal["mean", "pick"] = "mean",
) -> Float[Tensor, "*batch heads query key"]:
    """An attention map with fewer heads, to compare models whose numbers of heads differ.

        mean:  y_g = 1/r sum_{h in group g} x_h,   r = H / heads consecutive heads a group
        pick:  y_g = x_{g r}

    A mean of probabilities is a probability again; of scores, it is the geometric mean of
    unnormalised probabilities. Use it on the model with more heads:
    `attention_mse(student, match_heads(teacher, 4))`.

    Args:
      x: `[*batch, head, query, key]`.
      heads: how many heads to return; divides the number of heads.
      how: "mean" over groups of consecutive heads, or "pick" the first of every group.

    Returns:
      `[*batch, heads, query, key]`.

    Example:
      >>> match_heads(torch.rand(2, 12, 5, 5), 4).shape
      torch.Size([2, 4, 5, 5])

    Reference:
      Jiao et al., TinyBERT, arXiv:1909.10351, compares head by head; this fills the gap.
    """
    floating("match_heads", x=x)
    if heads < 1 or x.shape[-3] % heads:
        raise ValueError(
            f"match_heads: heads {heads}; a divisor of the {x.shape[-3]} heads of x "
            f"{tuple(x.shape)} is expected."
        )
    if how not in ("mean", "pick"):
        raise ValueError(f"match_heads: how {how!r}; 'mean' or 'pick' is expected.")
    groups = x.unflatten(-3, (heads, x.shape[-3] // heads))
    return groups.mean(-3) if how == "mean" else groups.select(-3, 0)


def _masked(x: Tensor) -> Tensor:
    """Pairs that the model itself has masked, by `-inf` or by a number of that size."""
    return x <= torch.finfo(x.dtype).min / 2


def _difference(student: Tensor, teacher: Tensor, counts: Tensor) -> Tensor:
    return fill_pairs(upcast(student), counts) - fill_pairs(upcast(teacher), counts)


def _mean_keys(values: Tensor, key_where: Tensor | None) -> Tensor:
    """Mean over the keys that count; the others hold 0 already."""
    if key_where is None:
        return values.mean(-1)
    number = key_where.bool().sum(-1, keepdim=True).to(values.dtype)
    return divide(values.sum(-1), number.expand(values.shape[:-1]))
