"""Which loss: by what one has, and what one wants. The page "Which loss?" and the command
`python -m fkd losses` are made from this table."""

from __future__ import annotations

from typing import NamedTuple


class Use(NamedTuple):
    """A situation.

    Attributes:
      task: the heading that it stands under.
      has: what there is: models, outputs, data.
      wants: what is wanted, or the symptom that is to go away.
      losses: what to begin with, the first first.
      why: a reason, and what to look out for.
      adapters: learnable pieces that the losses need.
    """

    task: str
    has: str
    wants: str
    losses: tuple[str, ...]
    why: str
    adapters: tuple[str, ...] = ()


_ANY, _TEXT, _LM, _IMAGE, _EMBED = (
    "Any classifier",
    "Text encoders",
    "Language models",
    "Images and feature maps",
    "Embeddings and ranking",
)

USES: tuple[Use, ...] = (
    Use(_ANY, "a teacher's logits", "a first baseline", ("kl",),
        "Temperature 2 to 4, with cross_entropy beside it where there are labels."),
    Use(_ANY, "a teacher's logits, no labels", "unlabelled data used", ("kl", "soft_cross_entropy"),
        "The same value up to a constant; kl is 0 where the student has learned all."),
    Use(_ANY, "logits and labels", "the classes other than the right one weigh more",
        ("dkd", "nkd"), "With a very sure teacher kl sees hardly anything of the other classes. "
        "With two classes there are no others: use kl."),
    Use(_ANY, "a teacher much stronger than the student", "relations, not exact probabilities",
        ("dist", "standardize"), "Correlation forgives scale and shift of the logits."),
    Use(_ANY, "a student that is too sure, or not calibrated", "calibrated probabilities",
        ("kl", "jeffreys", "corrected_teacher"), "Look at the report card's reliability plot: "
        "temperature 1, or reverse_kl beside kl."),
    Use(_ANY, "a teacher that is often wrong", "its mistakes left out",
        ("corrected_teacher", "replace_wrong", "probability_shift", "wsld"),
        "They change the teacher's logits by the labels before they are compared."),
    Use(_ANY, "noisy labels", "a loss that outliers do not rule",
        ("kl", "focal", "total_variation"), "The teacher smooths the labels; lower their weight."),
    Use(_ANY, "no idea of the temperature", "a temperature that is learned, or set by sample",
        ("ctkd_temperature", "flsw_temperature", "cwsm_temperature"), "One scalar for all, or one "
        "for each sample.", ("LearnableTemperature", "InstanceTemperature", "StudentTemperature")),
    Use(_ANY, "no teacher at all", "regularisation as by a teacher",
        ("virtual_teacher", "uskd_others", "uskd_target"), "Label smoothing with a shape."),
    Use(_ANY, "several labels an example", "each class judged by itself",
        ("binary_kl", "binary_cross_entropy"), "A softmax over labels that are not exclusive is "
        "wrong."),
    Use(_ANY, "only the teacher's first choice", "hard labels from a teacher", ("hard_label",),
        "DeiT's distillation token; cross_entropy with the teacher's argmax."),
    Use(_ANY, "several teachers", "the best of them by example", ("kl", "least_wrong"),
        "Average their logits by call(mean, ...), or choose by the labels."),
    Use(_ANY, "a number, not a class", "regression", ("mse", "smooth_l1", "log_distance"),
        "Beside the target from the data, weighted by how good the teacher is."),
    Use(_TEXT, "hidden states of one width", "the student's layers as the teacher's",
        ("mse", "cosine", "pkd"), "Pairs of layers by fkd.layer_map; pass where=attention_mask."),
    Use(_TEXT, "hidden states of different widths", "the student's layers as the teacher's",
        ("mse", "cka", "similarity_preserving"), "A projection, or a loss of relations that needs "
        "none.", ("LinearProjection", "MLPProjection")),
    Use(_TEXT, "attention of the last layers", "a student of any depth and width",
        ("minilm_relation", "attention_kl"), "MiniLM: no map of layers to choose, no projection."),
    Use(_TEXT, "attention maps of several layers", "each student layer attends as its teacher's",
        ("attention_mse", "attention_kl", "match_heads"), "Scores before the softmax (TinyBERT), "
        "or maps after it."),
    Use(_TEXT, "no idea which layers belong together", "the pairing learned",
        ("alp", "rail", "bert_emd", "universal_kd", "mix_layers"),
        "Attention over teacher layers, or optimal transport.", ("LayerAttention",)),
    Use(_TEXT, "relations of words", "geometry kept, widths free",
        ("word_relation", "word_angle", "mgskd_pair", "layer_relation"),
        "Quadratic or cubic in the length: see the costs."),
    Use(_LM, "both models' logits, one vocabulary", "a first baseline", ("kl",),
        "Labels of causal models are the tokens after: call(fkd.loops.next_tokens, ...)."),
    Use(_LM, "memory full of logits", "the logits never stored",
        ("head_divergence",), "Hidden states and head weights go in; the vocabulary is read in "
        "chunks."),
    Use(_LM, "a student that babbles: mass where the teacher has none", "mode seeking",
        ("reverse_kl", "skew_reverse_kl", "jsd"), "Forward KL covers all modes of the teacher, "
        "reverse KL chooses."),
    Use(_LM, "texts that the student wrote", "on-policy distillation",
        ("jsd", "reverse_kl", "sampled_reverse_kl", "policy_reverse_kl"), "With the teacher's "
        "log-probability of the drawn tokens alone: policy_reverse_kl."),
    Use(_LM, "between forward and reverse KL", "both, by place",
        ("adaptive_kl", "todi", "ab_divergence", "skew_kl", "alpha_divergence", "renyi",
         "jeffreys"),
        "AKL weighs head and tail of the teacher's distribution, ToDi each class; ABKD has two "
        "numbers for how errors and sure classes count."),
    Use(_LM, "a student far from its teacher", "a target that comes nearer",
        ("taid", "skew_kl"), "TAID's target begins near the student and moves on as the loss "
        "falls; its state goes in and comes out."),
    Use(_LM, "the teacher's top k tokens", "offline distillation in little space",
        ("top_k_kl", "top_k"), "Biased: what is not in the top k is one bucket, or nothing."),
    Use(_LM, "samples from the teacher's distribution", "offline distillation without bias",
        ("sampled_kl", "sampled_cross_entropy", "sample"), "The expectation of the gradient is "
        "that of the full KL."),
    Use(_LM, "two vocabularies", "a teacher of another family",
        ("shared_kl", "project_vocabulary", "alm", "gold", "uld", "multi_level_ot",
         "sinkhorn_ot"),
        "At positions that have read the same text (fkd.loops.language.align): what both "
        "vocabularies have, shares of one in the other, spans of text, or sorted probabilities; "
        "or each model's states through the other's head.", ("CrossModelAttention",)),
    Use(_IMAGE, "feature maps of one number of channels", "the maps themselves",
        ("mse", "partial_l2", "hcl"), "hcl compares them at several scales."),
    Use(_IMAGE, "feature maps of different channels", "no projection to learn",
        ("attention_transfer", "nst", "similarity_preserving", "cwd"),
        "They compare what does not depend on the channels."),
    Use(_IMAGE, "feature maps of different channels", "the maps themselves",
        ("mse", "vid", "factor_transfer", "mgd"), "A 1 x 1 convolution or a generator learns the "
        "way over.", ("ConvRegressor", "VarianceHead", "MaskedGenerator", "Paraphraser")),
    Use(_IMAGE, "several stages of a network", "the best pairs of stages",
        ("semckd", "afd", "hcl"), "Attention over stages, or ReviewKD's fusion.",
        ("SemCKDAttention", "AFDAttention", "ReviewFusion")),
    Use(_IMAGE, "the teacher's classifier may stay", "its accuracy with a small body",
        ("mse",), "SimKD: the student's features go through the teacher's head.",
        ("SimKDProjector", "SRRLConnector")),
    Use(_IMAGE, "a detector or a segmentation network", "dense prediction",
        ("cwd", "fgd_focal", "fgd_attention", "fbkd_masked", "mgd", "pearson"),
        "Objects are few: weigh places (fgd_weight), or channels (cwd).", ("GlobalContext",)),
    Use(_IMAGE, "views without labels", "self-distillation", ("dino", "queue_kl"),
        "A state goes in and comes out; the teacher is fkd.ema('student').", ("DINOHead",)),
    Use(_EMBED, "a teacher's embeddings of the same width", "the same vector space",
        ("cosine", "mse", "cos_nce"), "An index of the teacher's vectors can then be searched by "
        "the student's."),
    Use(_EMBED, "embeddings of different widths", "the same neighbours",
        ("similarity_preserving", "pkt", "rkd_distance", "in_batch_kl"),
        "Relations within the batch: large batches help."),
    Use(_EMBED, "queries, passages and a cross-encoder's scores", "a bi-encoder for retrieval",
        ("margin_mse", "listwise_kl", "in_batch_kl"), "margin_mse for pairs, listwise_kl for "
        "lists; scales of the two models may differ."),
    Use(_EMBED, "batches too small for contrast", "many negatives",
        ("crd", "crcd", "queue_kl", "infonce"), "A queue of earlier embeddings is the state; crcd "
        "contrasts relations to the samples of the batch."),
    Use(_EMBED, "a ranking, not scores", "the teacher's order",
        ("hinge_ranking", "logistic_ranking", "listwise_kl"), "Scale-free."),
    Use(_EMBED, "graphs or relations of samples", "the structure of a batch",
        ("rkd_angle", "irg_edge", "correlation_congruence", "cka"), "Cubic for angles."),
)  # fmt: skip
