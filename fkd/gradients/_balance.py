"""Weights of terms that are learned from the norms of their gradients (GradNorm)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._combination import Gradient, Groups, squares, weighted_sum


@dataclass(frozen=True)
class GradNorm:
    """See `grad_norm`, which makes it. Its state: `weights` and first `losses`, `[K]` each."""

    alpha: float
    lr: float
    shared: str = ""
    groups: Groups | None = None

    def init(self, parameters: Gradient, groups: Sequence[str]) -> dict[str, Tensor]:
        """Weights of 1; the losses are those of the first step, and 0 before it."""
        like = next(p for params in parameters.values() for p in params.values())
        ones = torch.ones(len(groups), device=like.device)
        return {"weights": ones, "losses": torch.zeros_like(ones)}

    def __call__(
        self, gradients: Mapping[str, Gradient], losses: Mapping[str, Tensor], state: Any
    ) -> tuple[Gradient, Any]:
        rows = list(gradients.values())
        norms = squares(rows, under=self.shared).sqrt()
        now = torch.stack([losses[name] for name in gradients]).to(state["losses"].dtype)
        first = torch.where(state["losses"] == 0, now, state["losses"])
        weights = balanced(
            state["weights"], norms.to(now.dtype), now / first, alpha=self.alpha, lr=self.lr
        )
        gradient = weighted_sum(rows, state["weights"])
        return gradient, {"weights": weights, "losses": first}


def balanced(weights: Tensor, norms: Tensor, ratio: Tensor, *, alpha: float, lr: float) -> Tensor:
    """`[K]`, the weights after a gradient step on `sum_k |w_k n_k - target_k|`.

    Args:
      weights: `[K]`.
      norms: `[K]`, of the gradients of the unweighted losses.
      ratio: `[K]`, each loss over what it was at first.
      alpha, lr: as in `grad_norm`.
    """
    each = weights * norms
    target = each.mean() * (ratio / ratio.mean()) ** alpha
    moved = (weights - lr * (each - target).sign() * norms).clamp(min=0.0)
    return moved * (len(weights) / moved.sum())


def grad_norm(
    groups: Groups | None = None, *, alpha: float = 1.5, lr: float = 0.025, shared: str = ""
) -> GradNorm:
    """Weights that bring the gradients of the terms to one scale (GradNorm).

        G_k = w_k |g_k|,   r_k = (L_k / L_k(0)) / mean_j(L_j / L_j(0))
        w = w - lr grad_w sum_k |G_k - mean_j(G_j) r_k^alpha|, then sum_k w_k = K
        gradient = sum_k w_k g_k

    The target is a constant of the derivative, as published. A weight does not fall below 0.

    Args:
      groups: `{name: terms}`; None: each term has a gradient of its own.
      alpha: how strongly terms that have fallen less are preferred; 0 makes all norms equal.
      lr: of the weights.
      shared: a dotted prefix, the last layer that the terms share: `"student.layers.11"`. Norms
        are of its parameters; of all parameters if it is empty.

    Example:
      >>> one = {"student": {"w": torch.tensor([4.0])}}
      >>> two = {"student": {"w": torch.tensor([1.0])}}
      >>> combine = grad_norm(lr=0.1)
      >>> losses = {"kd": torch.tensor(1.0), "labels": torch.tensor(1.0)}
      >>> state = combine.init(one, ["kd", "labels"])
      >>> combine({"kd": one, "labels": two}, losses, state)[1]["weights"]
      tensor([0.7059, 1.2941])

    Reference:
      Chen et al., GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask
      Networks, arXiv:1711.02257.
    """
    if not lr > 0:
        raise ValueError(f"grad_norm: lr is {lr}; a positive number is expected.")
    return GradNorm(alpha, lr, shared, groups)
