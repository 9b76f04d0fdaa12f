"""What the catalogue says beyond the docstrings: costs, and matching adapters."""

from __future__ import annotations

NO_FORMULA = {
    "CRDState", "DINOState", "Queue", "Sample", "TAIDState", "TopK",
    "crd_init", "dino_init", "taid_init", "queue_init", "enqueue", "counted_where",
    "token_log_probs", "span_log_probs",
}  # fmt: skip
"""States and plumbing: no formula, and no paper."""

_SORT = "time V log V a position: sorts the V classes"
_BATCH = "time n^2 D, memory n^2 for n samples of D features"
_PLAN = "time iterations * n m, memory n m"

COSTS: dict[str, str] = {
    "adaptive_kl": _SORT,
    "adaptive_kl_weight": _SORT,
    "uskd_others": _SORT,
    "uld": _SORT,
    "gold": _SORT,
    "multi_level_ot": "time V log V a sequence, memory k a token for the matched classes",
    "sinkhorn_ot": "memory k n m a sequence, for n and m tokens and the k classes",
    "top_k": "selects k of the V classes, no sort of all",
    "sample": "time V + draws log V a position",
    "dist_intra": "reads the batch along the batch axis",
    "mlkd_batch": "time n^2 V, memory n^2 for n samples",
    "mlkd_class": "time n V^2, memory V^2: for classification, not for a vocabulary",
    "skd_direction": "time n^3, memory n^2 for n samples (a Cholesky factor)",
    "mlkd_instance": "linear, once for each temperature",
    "alp": "time and memory of student layers * teacher layers scores a position",
    "mix_layers": "time and memory of student layers * teacher layers scores a position",
    "universal_kd": "time and memory of student layers * teacher layers scores a position",
    "sinkhorn_plan": _PLAN,
    "sinkhorn": f"time n m D for the costs; {_PLAN}",
    "bert_emd": f"time n m D a token, for n and m layers; {_PLAN} a sequence",
    "minilm_relation": "time L^2 D, memory heads * L^2 a sequence of length L",
    "word_relation": "time L^2 D, memory L^2 a sequence",
    "word_angle": "memory L^3 a sequence; L window^2 with a window",
    "layer_relation": "time n^2 D, memory n^2 a token, for n layers",
    "layer_angle": "memory n^3 a token, for n layers",
    "mgskd_pair": "time L^2 D, memory heads * L^2 a sequence",
    "mgskd_angle": "memory vertices * neighbours^2 a sequence, L^2 for the choice",
    "mgskd_sample": "memory heads * n^3 for n samples",
    "fsp": "time C^2 P, memory C^2 a sample, for C channels and P places",
    "gram": "time C^2 P, memory C^2 a sample, for C channels and P places",
    "ickd": "time C^2 P, memory C^2 a sample, for C channels and P places",
    "nst": "time C^2 P, memory C^2 a sample: products only, never `[batch, Cs, Ct, P]`",
    "affinity": "time P^2 C, memory P^2 a sample, for P places: pool large maps first",
    "kdsvd": "an eigendecomposition of a C x C matrix a map: time C^3",
    "rkd_distance": _BATCH,
    "rkd_angle": "time n^3, memory n^3 for n samples, whatever the number of features",
    "similarity_preserving": _BATCH,
    "correlation_congruence": _BATCH,
    "infonce": _BATCH,
    "cos_nce": _BATCH,
    "irg_edge": _BATCH,
    "pkt": _BATCH,
    "cka": _BATCH,
    "cka_linear": _BATCH,
    "cka_rbf": _BATCH,
    "in_batch_kl": _BATCH,
    "crd": "time n N D, memory n N for n samples and a queue of N",
    "crcd": "time n^2 N D, memory n^2 N for n samples, all of them anchors, and a queue of N",
    "queue_kl": "time n N D, memory n N for n samples and a queue of N",
    "dino": "student views * teacher views cross-entropies a sample",
    "hinge_ranking": "memory candidates^2 a position",
    "logistic_ranking": "memory candidates^2 a position",
    "fgd_weight": "boxes * places a sample",
    "project_vocabulary": "memory V shares a position, for the V classes",
    "jacobian_matching": "linear here; its inputs need a second derivative of the student",
}
"""Where the cost is not linear in the inputs, or worth a word."""

ADAPTERS: dict[str, tuple[str, ...]] = {
    "kl": ("LearnableTemperature", "InstanceTemperature", "StudentTemperature"),
    "mse": (
        "LinearProjection", "MLPProjection", "LayerAttention", "ConvRegressor", "SimKDProjector",
        "SRRLConnector", "GlobalContext",
    ),
    "smooth_l1": ("OrthogonalProjector",),
    "cosine": ("LinearProjection",),
    "rail": ("LinearProjection",),
    "log_distance": ("LinearProjection",),
    "crcd": ("LinearProjection",),
    "crd": ("LinearProjection",),
    "queue_kl": ("MLPProjection",),
    "l2": ("NonLocal",),
    "semckd": ("SemCKDAttention", "PairProjections"),
    "afd": ("AFDAttention",),
    "afds": ("ChannelAttention",),
    "factor_transfer": ("Paraphraser", "Translator"),
    "mgd": ("MaskedGenerator", "TokenGenerator"),
    "hcl": ("ReviewFusion",),
    "vid": ("VarianceHead",),
    "pad": ("PADVariance",),
    "dino": ("DINOHead",),
}  # fmt: skip
"""The learnable pieces of `fkd.adapters` that go with a loss."""
