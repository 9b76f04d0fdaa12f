"""Divergences between two language models' heads, computed without storing the logits."""

from ._api import head_agreement as head_agreement
from ._api import head_divergence as head_divergence
from ._api import head_divergence_and_metrics as head_divergence_and_metrics
from ._api import head_metrics as head_metrics
from ._divergence import Divergence as Divergence
from ._divergence import elementwise as elementwise
from ._named import alpha_divergence as alpha_divergence
from ._named import cross_entropy as cross_entropy
from ._named import jsd as jsd
from ._named import kl as kl
from ._named import reverse_kl as reverse_kl
from ._named import skew_kl as skew_kl
from ._named import skew_reverse_kl as skew_reverse_kl
from ._named import soft_cross_entropy as soft_cross_entropy
from ._named import total_variation as total_variation
from ._named import z_loss as z_loss
from ._sizes import chunk_budget as chunk_budget
from ._sizes import chunk_tokens as chunk_tokens

__all__ = [
    "Divergence",
    "alpha_divergence",
    "chunk_budget",
    "chunk_tokens",
    "cross_entropy",
    "elementwise",
    "head_agreement",
    "head_divergence",
    "head_divergence_and_metrics",
    "head_metrics",
    "jsd",
    "kl",
    "reverse_kl",
    "skew_kl",
    "skew_reverse_kl",
    "soft_cross_entropy",
    "total_variation",
    "z_loss",
]
