"""Distillation losses: pure functions of tensors, unreduced. One family a file."""

from ._counted import counted_where as counted_where
from ._logits import jeffreys as jeffreys
from ._logits import kl as kl
from ._logits import logit_mse as logit_mse
from ._logits import reverse_kl as reverse_kl
from ._logits import soft_cross_entropy as soft_cross_entropy
