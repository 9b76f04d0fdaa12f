"""A distribution over one vocabulary as one over another, by a sparse matrix of shares."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.checks import axes, covers, floating, positive, same_shape, whole
from .._shared.masks import fill, keep, soften, upcast


def project_vocabulary(
    logits: Float[Tensor, "*batch vocab"],
    ids: Int[Tensor, "vocab shares"],
    shares: Float[Tensor, "vocab shares"],
    *,
    size: int,
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch other"]:
    """Probabilities over another vocabulary: each class hands its own on, in shares (X-Token).

        r_j = sum_i M_ij q_i,   q = softmax(logits / T),   M_ij = the share of i that goes to j

    Of a class whose shares sum to 1 everything arrives; of one without any, nothing: r then sums
    to less than 1, and `r / r.sum(-1, keepdim=True)` is the distribution of what arrives. Compare
    its logarithm with the other model's logits, `kl(torch.log(r), teacher_logits)`; both averaged
    over the tokens of a stretch of text, where the two tokenizers cut it differently.

    Args:
      logits: `[*batch, vocab]`, usually the student's. `-inf` means probability 0.
      ids: `[vocab, shares]`, the classes of the other vocabulary that each class goes to; a
        negative one goes nowhere.
      shares: `[vocab, shares]`, how much of its probability, 0 or more; learned, if you like.
      size: of the other vocabulary.
      temperature: T > 0, a number or a tensor `[*batch, 1]`, one T a position.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch, size]`, non-negative.

    Example:
      >>> ids, shares = torch.tensor([[0, 2], [1, -1]]), torch.tensor([[0.5, 0.5], [1.0, 0.0]])
      >>> project_vocabulary(torch.zeros(1, 2), ids, shares, size=3)
      tensor([[0.2500, 0.5000, 0.2500]])

    Reference:
      X-Token: Projection-Guided Cross-Tokenizer Knowledge Distillation, arXiv:2605.21699 (its
      P-KL, before the divergence).
    """
    floating("project_vocabulary", logits=logits, shares=shares)
    positive("project_vocabulary", temperature=temperature)
    whole("project_vocabulary", 1, size=size)
    axes("project_vocabulary", "*batch vocab", logits=logits)
    axes("project_vocabulary", "vocab shares", ids=ids, shares=shares)
    same_shape("project_vocabulary", ids=ids, shares=shares)
    if ids.shape[0] != logits.shape[-1]:
        raise ValueError(
            f"project_vocabulary: ids {tuple(ids.shape)} and logits {tuple(logits.shape)}; one "
            "row of ids for every class of the logits is expected."
        )
    covers("project_vocabulary", where, logits.shape[:-1])
    (z,) = fill(logits, where=where)
    q = F.softmax(soften(z, temperature), dim=-1)
    goes = ids >= 0
    parts = q.unsqueeze(-1) * torch.where(goes, upcast(shares), 0.0).to(q.dtype)
    start = q.new_zeros((*q.shape[:-1], size))
    arrived = start.index_add(-1, ids.clamp(min=0).flatten().long(), parts.flatten(-2))
    return keep_rows(arrived, where)


def keep_rows(values: Tensor, where: Tensor | None) -> Tensor:
    """`keep`, for values with one more axis than the mask."""
    return (
        values if where is None else keep(values, where.bool().unsqueeze(-1).expand(values.shape))
    )
