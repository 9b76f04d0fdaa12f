"""Distillation losses: pure functions of tensors, unreduced. One family a file."""

from ._attention import attention_cross_entropy as attention_cross_entropy
from ._attention import attention_kl as attention_kl
from ._attention import attention_mse as attention_mse
from ._attention import attention_scores_kl as attention_scores_kl
from ._attention import match_heads as match_heads
from ._context_relations import layer_angle as layer_angle
from ._context_relations import layer_relation as layer_relation
from ._context_relations import pool_spans as pool_spans
from ._context_relations import word_angle as word_angle
from ._context_relations import word_relation as word_relation
from ._counted import counted_where as counted_where
from ._granularity import mgskd_angle as mgskd_angle
from ._granularity import mgskd_pair as mgskd_pair
from ._granularity import mgskd_sample as mgskd_sample
from ._layers import alp as alp
from ._layers import mix_layers as mix_layers
from ._layers import rail as rail
from ._layers import universal_kd as universal_kd
from ._logits import jeffreys as jeffreys
from ._logits import kl as kl
from ._logits import logit_mse as logit_mse
from ._logits import reverse_kl as reverse_kl
from ._logits import soft_cross_entropy as soft_cross_entropy
from ._minilm import minilm_relation as minilm_relation
