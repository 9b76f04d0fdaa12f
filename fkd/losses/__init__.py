"""Distillation losses: pure functions of tensors, unreduced. One family a file."""

from ._attention.divergences import attention_cross_entropy as attention_cross_entropy
from ._attention.divergences import attention_kl as attention_kl
from ._attention.divergences import attention_scores_kl as attention_scores_kl
from ._attention.maps import attention_mse as attention_mse
from ._attention.maps import match_heads as match_heads
from ._attention.mgskd import mgskd_angle as mgskd_angle
from ._attention.mgskd import mgskd_pair as mgskd_pair
from ._attention.mgskd import mgskd_sample as mgskd_sample
from ._attention.minilm import minilm_relation as minilm_relation
from ._attention.tokens import layer_angle as layer_angle
from ._attention.tokens import layer_relation as layer_relation
from ._attention.tokens import pool_spans as pool_spans
from ._attention.tokens import word_angle as word_angle
from ._attention.tokens import word_relation as word_relation
from ._contrastive.crcd import crcd as crcd
from ._contrastive.crd import CRDState as CRDState
from ._contrastive.crd import crd as crd
from ._contrastive.crd import crd_init as crd_init
from ._contrastive.crd import queue_kl as queue_kl
from ._contrastive.dino import DINOState as DINOState
from ._contrastive.dino import dino as dino
from ._contrastive.dino import dino_init as dino_init
from ._contrastive.queue import Queue as Queue
from ._contrastive.queue import enqueue as enqueue
from ._contrastive.queue import queue_init as queue_init
from ._features.activation import activation_boundary as activation_boundary
from ._features.activation import factor_transfer as factor_transfer
from ._features.activation import margin_relu as margin_relu
from ._features.activation import mgd as mgd
from ._features.activation import negative_mean as negative_mean
from ._features.activation import partial_l2 as partial_l2
from ._features.attended import afd as afd
from ._features.attended import afds as afds
from ._features.attended import fbkd_attention as fbkd_attention
from ._features.attended import fbkd_masked as fbkd_masked
from ._features.attended import semckd as semckd
from ._features.dist_maps import dist_channel as dist_channel
from ._features.dist_maps import dist_spatial as dist_spatial
from ._features.fgd import fgd_attention as fgd_attention
from ._features.fgd import fgd_focal as fgd_focal
from ._features.fgd import fgd_weight as fgd_weight
from ._features.gram import affinity as affinity
from ._features.gram import fsp as fsp
from ._features.gram import gram as gram
from ._features.gram import ickd as ickd
from ._features.gram import nst as nst
from ._features.kdsvd import kdsvd as kdsvd
from ._features.likelihood import jacobian_matching as jacobian_matching
from ._features.likelihood import log_distance as log_distance
from ._features.likelihood import pad as pad
from ._features.likelihood import vid as vid
from ._features.maps import attention_transfer as attention_transfer
from ._features.maps import cat_kd as cat_kd
from ._features.maps import cwd as cwd
from ._features.maps import hcl as hcl
from ._features.maps import pearson as pearson
from ._hidden.hidden import cosine as cosine
from ._hidden.hidden import l1 as l1
from ._hidden.hidden import l2 as l2
from ._hidden.hidden import mse as mse
from ._hidden.hidden import pkd as pkd
from ._hidden.hidden import smooth_l1 as smooth_l1
from ._hidden.layers import alp as alp
from ._hidden.layers import mix_layers as mix_layers
from ._hidden.layers import rail as rail
from ._hidden.layers import universal_kd as universal_kd
from ._hidden.transport import bert_emd as bert_emd
from ._hidden.transport import sinkhorn as sinkhorn
from ._hidden.transport import sinkhorn_plan as sinkhorn_plan
from ._labels.labels import cross_entropy as cross_entropy
from ._labels.labels import focal as focal
from ._labels.labels import hard_label as hard_label
from ._labels.multi_label import binary_cross_entropy as binary_cross_entropy
from ._labels.multi_label import binary_kl as binary_kl
from ._labels.soft_labels import uskd_others as uskd_others
from ._labels.soft_labels import uskd_soft_label as uskd_soft_label
from ._labels.soft_labels import uskd_target as uskd_target
from ._labels.soft_labels import wsld as wsld
from ._labels.soft_labels import wsld_weight as wsld_weight
from ._logits.balanced import ab_divergence as ab_divergence
from ._logits.balanced import todi as todi
from ._logits.decoupled import dkd as dkd
from ._logits.decoupled import nkd as nkd
from ._logits.dist import dist as dist
from ._logits.dist import dist_inter as dist_inter
from ._logits.dist import dist_intra as dist_intra
from ._logits.divergences import adaptive_kl as adaptive_kl
from ._logits.divergences import adaptive_kl_weight as adaptive_kl_weight
from ._logits.divergences import alpha_divergence as alpha_divergence
from ._logits.divergences import renyi as renyi
from ._logits.divergences import total_variation as total_variation
from ._logits.gold import gold as gold
from ._logits.gold import merged_log_probs as merged_log_probs
from ._logits.interpolated import TAIDState as TAIDState
from ._logits.interpolated import taid as taid
from ._logits.interpolated import taid_init as taid_init
from ._logits.kl import jeffreys as jeffreys
from ._logits.kl import kl as kl
from ._logits.kl import logit_mse as logit_mse
from ._logits.kl import reverse_kl as reverse_kl
from ._logits.kl import soft_cross_entropy as soft_cross_entropy
from ._logits.mixtures import jsd as jsd
from ._logits.mixtures import skew_kl as skew_kl
from ._logits.mixtures import skew_reverse_kl as skew_reverse_kl
from ._logits.multi_level import mlkd_batch as mlkd_batch
from ._logits.multi_level import mlkd_class as mlkd_class
from ._logits.multi_level import mlkd_instance as mlkd_instance
from ._logits.multi_level import skd_direction as skd_direction
from ._logits.ofa import ofa as ofa
from ._logits.on_policy import policy_reverse_kl as policy_reverse_kl
from ._logits.on_policy import sampled_reverse_kl as sampled_reverse_kl
from ._logits.projected import project_vocabulary as project_vocabulary
from ._logits.sampling import Sample as Sample
from ._logits.sampling import TopK as TopK
from ._logits.sampling import sample as sample
from ._logits.sampling import top_k as top_k
from ._logits.sparse import sampled_cross_entropy as sampled_cross_entropy
from ._logits.sparse import sampled_kl as sampled_kl
from ._logits.sparse import top_k_kl as top_k_kl
from ._logits.tokenizers import alm as alm
from ._logits.tokenizers import shared_kl as shared_kl
from ._logits.tokenizers import span_log_probs as span_log_probs
from ._logits.tokenizers import token_log_probs as token_log_probs
from ._logits.vocabulary import multi_level_ot as multi_level_ot
from ._logits.vocabulary import sinkhorn_ot as sinkhorn_ot
from ._logits.vocabulary import uld as uld
from ._samples.cka import cka as cka
from ._samples.cka import cka_linear as cka_linear
from ._samples.cka import cka_rbf as cka_rbf
from ._samples.irg import irg_edge as irg_edge
from ._samples.irg import irg_transformation as irg_transformation
from ._samples.neighbourhood import correlation_congruence as correlation_congruence
from ._samples.neighbourhood import cos_nce as cos_nce
from ._samples.neighbourhood import infonce as infonce
from ._samples.neighbourhood import pkt as pkt
from ._samples.ranking import hinge_ranking as hinge_ranking
from ._samples.ranking import logistic_ranking as logistic_ranking
from ._samples.ranking import margin_mse as margin_mse
from ._samples.retrieval import adaptive_layer_kl as adaptive_layer_kl
from ._samples.retrieval import in_batch_kl as in_batch_kl
from ._samples.retrieval import listwise_kl as listwise_kl
from ._samples.rkd import rkd_angle as rkd_angle
from ._samples.rkd import rkd_distance as rkd_distance
from ._samples.rkd import similarity_preserving as similarity_preserving
from ._shared.counted import counted_where as counted_where
from ._teacher.logits import corrected_teacher as corrected_teacher
from ._teacher.logits import probability_shift as probability_shift
from ._teacher.logits import replace_wrong as replace_wrong
from ._teacher.logits import standardize as standardize
from ._teacher.logits import virtual_teacher as virtual_teacher
from ._teacher.selection import least_wrong as least_wrong
from ._teacher.temperatures import ctkd_temperature as ctkd_temperature
from ._teacher.temperatures import cwsm_temperature as cwsm_temperature
from ._teacher.temperatures import flsw_temperature as flsw_temperature
from ._teacher.temperatures import reverse_gradient as reverse_gradient
from .head import head_agreement as head_agreement
from .head import head_divergence as head_divergence
from .head import head_divergence_and_metrics as head_divergence_and_metrics
from .head import head_metrics as head_metrics

__all__ = [
    "CRDState",
    "DINOState",
    "Queue",
    "Sample",
    "TAIDState",
    "TopK",
    "ab_divergence",
    "activation_boundary",
    "adaptive_kl",
    "adaptive_kl_weight",
    "adaptive_layer_kl",
    "afd",
    "afds",
    "affinity",
    "alm",
    "alp",
    "alpha_divergence",
    "attention_cross_entropy",
    "attention_kl",
    "attention_mse",
    "attention_scores_kl",
    "attention_transfer",
    "bert_emd",
    "binary_cross_entropy",
    "binary_kl",
    "cat_kd",
    "cka",
    "cka_linear",
    "cka_rbf",
    "corrected_teacher",
    "correlation_congruence",
    "cos_nce",
    "cosine",
    "counted_where",
    "crcd",
    "crd",
    "crd_init",
    "cross_entropy",
    "ctkd_temperature",
    "cwd",
    "cwsm_temperature",
    "dino",
    "dino_init",
    "dist",
    "dist_channel",
    "dist_inter",
    "dist_intra",
    "dist_spatial",
    "dkd",
    "enqueue",
    "factor_transfer",
    "fbkd_attention",
    "fbkd_masked",
    "fgd_attention",
    "fgd_focal",
    "fgd_weight",
    "flsw_temperature",
    "focal",
    "fsp",
    "gold",
    "gram",
    "hard_label",
    "hcl",
    "head",
    "head_agreement",
    "head_divergence",
    "head_divergence_and_metrics",
    "head_metrics",
    "hinge_ranking",
    "ickd",
    "in_batch_kl",
    "infonce",
    "irg_edge",
    "irg_transformation",
    "jacobian_matching",
    "jeffreys",
    "jsd",
    "kdsvd",
    "kl",
    "l1",
    "l2",
    "layer_angle",
    "layer_relation",
    "least_wrong",
    "listwise_kl",
    "log_distance",
    "logistic_ranking",
    "logit_mse",
    "margin_mse",
    "margin_relu",
    "match_heads",
    "merged_log_probs",
    "mgd",
    "mgskd_angle",
    "mgskd_pair",
    "mgskd_sample",
    "minilm_relation",
    "mix_layers",
    "mlkd_batch",
    "mlkd_class",
    "mlkd_instance",
    "mse",
    "multi_level_ot",
    "negative_mean",
    "nkd",
    "nst",
    "ofa",
    "pad",
    "partial_l2",
    "pearson",
    "pkd",
    "pkt",
    "policy_reverse_kl",
    "pool_spans",
    "probability_shift",
    "project_vocabulary",
    "queue_init",
    "queue_kl",
    "rail",
    "renyi",
    "replace_wrong",
    "reverse_gradient",
    "reverse_kl",
    "rkd_angle",
    "rkd_distance",
    "sample",
    "sampled_cross_entropy",
    "sampled_kl",
    "sampled_reverse_kl",
    "semckd",
    "shared_kl",
    "similarity_preserving",
    "sinkhorn",
    "sinkhorn_ot",
    "sinkhorn_plan",
    "skd_direction",
    "skew_kl",
    "skew_reverse_kl",
    "smooth_l1",
    "soft_cross_entropy",
    "span_log_probs",
    "standardize",
    "taid",
    "taid_init",
    "todi",
    "token_log_probs",
    "top_k",
    "top_k_kl",
    "total_variation",
    "uld",
    "universal_kd",
    "uskd_others",
    "uskd_soft_label",
    "uskd_target",
    "vid",
    "virtual_teacher",
    "word_angle",
    "word_relation",
    "wsld",
    "wsld_weight",
]
