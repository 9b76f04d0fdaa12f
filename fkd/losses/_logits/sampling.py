"""Sparse records of a teacher: its k most probable classes, or draws from it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .._shared.checks import classes_last, floating, positive
from .._shared.masks import soften, upcast


class TopK(NamedTuple):
    """The most probable classes of a teacher, the second and third argument of `top_k_kl`.

    Attributes:
      log_probs: `[*batch, k]`, of the softmax over the whole vocabulary, largest first.
      ids: `[*batch, k]`.
    """

    log_probs: Tensor
    ids: Tensor


class Sample(NamedTuple):
    """Classes drawn from a teacher, the further arguments of `sampled_kl`.

    Attributes:
      log_probs: `[*batch, draws]`, of the softmax over the whole vocabulary.
      ids: `[*batch, draws]`, with replacement.
      weights: `[*batch, draws]`, p / (draws * r) for the proposal r.
    """

    log_probs: Tensor
    ids: Tensor
    weights: Tensor


def top_k(
    teacher_logits: Float[Tensor, "*batch vocab"], k: int, *, temperature: float | Tensor = 1.0
) -> TopK:
    """The k most probable classes of a teacher.

        log_probs = log softmax(teacher / T) at ids,   ids = the k largest

    Args:
      teacher_logits: `[*batch, vocab]`.
      k: from 1 to vocab.
      temperature: T > 0, a number or a tensor that broadcasts against the logits.

    Returns:
      `TopK(log_probs, ids)`, `[*batch, k]` each.

    Example:
      >>> top_k(torch.tensor([[0.0, 2.0, 1.0]]), 2).ids
      tensor([[1, 2]])

    Reference:
      Anshumann et al., arXiv:2503.16870.
    """
    floating("top_k", teacher_logits=teacher_logits)
    classes_last("top_k", None, teacher_logits=teacher_logits)
    positive("top_k", temperature=temperature)
    if not 1 <= k <= teacher_logits.shape[-1]:
        raise ValueError(
            f"top_k: k is {k}; a number from 1 to the size of the vocabulary, "
            f"{teacher_logits.shape[-1]}, is expected."
        )
    log_p = F.log_softmax(soften(upcast(teacher_logits), temperature), dim=-1)
    log_probs, ids = log_p.topk(k, dim=-1)
    return TopK(log_probs, ids)


def sample(
    teacher_logits: Float[Tensor, "*batch vocab"],
    uniform: Float[Tensor, "*batch draws"],
    *,
    proposal: float | Tensor = 1.0,
    temperature: float | Tensor = 1.0,
) -> Sample:
    """Draw classes from a teacher, with the weights that make `sampled_kl` unbiased.

        ids ~ r,   r = p^proposal / sum p^proposal,   p = softmax(teacher / T)
        weights = p / (draws * r)

    Pure: the random numbers are an argument. Class v is drawn where the cumulative sum of r
    passes the uniform number.

    Args:
      teacher_logits: `[*batch, vocab]`. Classes with `-inf` are never drawn.
      uniform: `[*batch, draws]`, independent uniform numbers, 0 <= u < 1 (`torch.rand`), of the
        dtype of the cumulative sums: float32 or wider.
      proposal: exponent of the proposal, > 0: 1 draws from p, smaller draws more of the tail.
      temperature: T > 0, a number or a tensor that broadcasts against the logits.

    Returns:
      `Sample(log_probs, ids, weights)`, `[*batch, draws]` each. With proposal = 1 all weights
      are 1 / draws.

    Example:
      >>> sample(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.2, 0.4, 0.6, 0.8]])).ids
      tensor([[0, 0, 1, 1]])

    Reference:
      Anshumann et al., Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs,
      arXiv:2503.16870.
    """
    floating("sample", teacher_logits=teacher_logits, uniform=uniform)
    classes_last("sample", None, teacher_logits=teacher_logits)
    positive("sample", proposal=proposal, temperature=temperature)
    if uniform.shape[:-1] != teacher_logits.shape[:-1]:
        raise ValueError(
            f"sample: uniform {tuple(uniform.shape)} must have the leading shape of teacher_logits "
            f"{tuple(teacher_logits.shape)}: some random numbers for every position."
        )
    log_p = F.log_softmax(soften(upcast(teacher_logits), temperature), dim=-1)
    log_r = F.log_softmax(proposal * log_p, dim=-1)
    cumulative = log_r.exp().cumsum(-1)
    total = cumulative[..., -1:]
    # Below the total even where u * total rounds up: the class drawn then has r > 0.
    below = torch.minimum(
        uniform.to(total.dtype) * total, total * (1 - torch.finfo(total.dtype).eps)
    )
    ids = torch.searchsorted(cumulative, below, right=True)
    log_probs = log_p.gather(-1, ids)
    weights = (log_probs - log_r.gather(-1, ids)).exp() / uniform.shape[-1]
    return Sample(log_probs, ids, weights)
