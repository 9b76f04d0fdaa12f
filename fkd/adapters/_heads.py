"""Heads that make embeddings for contrastive and self-supervised losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class DINOHead(nn.Module):
    """The projection head of DINO: an MLP, scaling to length 1, and prototypes of length 1.

        y_c = <w_c / |w_c|, unit(mlp(x))>

    Args:
      width: size of the backbone's output.
      classes: number of prototypes (65536 in the paper).
      hidden: size of the two hidden layers.
      bottleneck: size of the layer that is scaled to length 1.

    Shape:
      `[*batch, width]` to `[*batch, classes]`, in [-1, 1].

    Example:
      >>> DINOHead(4, 10, hidden=8, bottleneck=6)(torch.rand(2, 3, 4)).shape
      torch.Size([2, 3, 10])

    Reference:
      Caron et al., Emerging Properties in Self-Supervised Vision Transformers, arXiv:2104.14294.
    """

    def __init__(
        self, width: int, classes: int, *, hidden: int = 2048, bottleneck: int = 256
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        self.prototypes = nn.Parameter(torch.randn(classes, bottleneck))

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch classes"]:
        """Cosines to the prototypes."""
        return F.linear(F.normalize(self.mlp(x), dim=-1), F.normalize(self.prototypes, dim=-1))
