"""Distributions over some classes and all others together."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .softmax import logsumexp

NOTHING = -1e30
"""The logit of a class that is left out: finite, so that a sum over none but these has a gradient
(of 0), and so low that no logit that means anything is near."""


def grouped(logits: Tensor, ids: Tensor, used: Tensor | None = None) -> Tensor:
    """`[*batch, k + 1]`, the logits of the listed classes, and of all others together at the end.

        z_ids, log sum_{v not in ids} exp z_v

    The others are summed as they are: 1 minus the rest would leave nothing of a small number.

    Args:
      logits: `[*batch, vocab]`, softened.
      ids: `[*batch, k]`, int64, each at most once among those in use.
      used: `[*batch, k]`, False for a place without a class, whose logit is -inf; None: all are.

    Returns:
      Logits of which the softmax is that of all classes; `log_softmax` has its log.
    """
    listed = logits.gather(-1, ids)
    if used is None:
        others = logits.scatter(-1, ids, NOTHING)
    else:
        listed = listed.masked_fill(~used, -torch.inf)
        # One more place, into which those without a class write.
        wider = F.pad(logits, (0, 1), value=NOTHING)
        others = wider.scatter(-1, torch.where(used, ids, logits.shape[-1]), NOTHING)
    rest = others.logsumexp(-1, keepdim=True)
    rest = torch.where(rest > 0.5 * NOTHING, rest, -torch.inf)
    return torch.cat([listed, rest], dim=-1)


def log_softmax(x: Tensor) -> Tensor:
    """log softmax over the last axis, all -inf where nothing is known."""
    return x - logsumexp(x)


def log_rest(log_probs: Tensor) -> Tensor:
    """`[*batch]`, log of what the listed probabilities leave: `log(1 - sum_k p_k)`."""
    left = 1 - log_probs.exp().sum(-1)
    return torch.where(left > 0, torch.where(left > 0, left, 1.0).log(), -torch.inf)
