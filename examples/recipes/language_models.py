"""Language models."""

from __future__ import annotations

import torch

import fkd
from fkd import batch, call, student, teacher, term
from fkd.losses import (
    adaptive_kl,
    cross_entropy,
    jsd,
    kl,
    multi_level_ot,
    reverse_kl,
    sample,
    sampled_kl,
    sampled_reverse_kl,
    sinkhorn_ot,
    skew_reverse_kl,
    total_variation,
    uld,
)

from ._recipe import Recipe
from ._small import causal, prose, texts, words


def on_policy():
    drawn = call(torch.clamp, batch.labels, min=0)
    counts = call(torch.ge, batch.labels, 0)
    return {
        "kd": term(sampled_reverse_kl, student.logits, teacher.logits, drawn, where=counts),
        "reverse_kl": fkd.metric(
            sampled_reverse_kl, student.logits, teacher.logits, drawn, where=counts,
            estimator="k3",
        ),
    }  # fmt: skip


def word_level():
    targets = call(fkd.loops.next_tokens, batch.labels)
    counts = targets != -100
    return {
        "kd": term(kl, student.logits, teacher.logits, where=counts),
        "labels": term(cross_entropy, student.logits, targets, weight=0.5),
    }


def generalized():
    counts = call(fkd.loops.next_tokens, batch.labels) != -100
    return {"jsd": term(jsd, student.logits, teacher.logits, beta=0.9, where=counts)}


def mode_seeking():
    counts = call(fkd.loops.next_tokens, batch.labels) != -100
    return {"reverse": term(reverse_kl, student.logits, teacher.logits, where=counts)}


def skewed():
    counts = call(fkd.loops.next_tokens, batch.labels) != -100
    return {"skew": term(skew_reverse_kl, student.logits, teacher.logits, skew=0.1, where=counts)}


def head_and_tail():
    counts = call(fkd.loops.next_tokens, batch.labels) != -100
    return {"akl": term(adaptive_kl, student.logits, teacher.logits, head=0.5, where=counts)}


def total_variations():
    counts = call(fkd.loops.next_tokens, batch.labels) != -100
    return {"tvd": term(total_variation, student.logits, teacher.logits, where=counts)}


def other_vocabulary():
    targets = call(fkd.loops.next_tokens, batch.labels)
    return {
        "uld": term(uld, student.logits, teacher.logits, where=targets != -100, weight=1.5),
        "labels": term(cross_entropy, student.logits, targets),
    }


def transported():
    counts = call(fkd.loops.next_tokens, batch.labels) != -100
    pair = (student.logits, teacher.logits)
    return {
        "tokens": term(multi_level_ot, *pair, k=10, where=counts),
        "sequence": term(sinkhorn_ot, *pair, k=10, where=counts, weight=0.1),
    }


def drawn_logits():
    def draws(logits):
        noise = torch.rand(*logits.shape[:-1], 8, device=logits.device)
        return tuple(sample(logits, noise))

    drawn = call(draws, teacher.logits)
    counts = call(fkd.loops.next_tokens, batch.labels) != -100
    return {"kd": term(sampled_kl, student.logits, drawn[0], drawn[1], drawn[2], where=counts)}


RECIPES = [
    Recipe("Word-level distillation", "arXiv:1606.07947", word_level, causal(), prose,
           "The label of a position is the token after it: `next_tokens`. Sequence-level "
           "distillation is `cross_entropy` on texts that the teacher wrote."),
    Recipe("Generalised distillation (GKD)", "arXiv:2306.13649", generalized, causal(), prose,
           "On texts of the student, of the teacher or of people, mixed by the loader."),
    Recipe("MiniLLM", "arXiv:2306.08543", mode_seeking, causal(), prose,
           "Reverse KL by token; there, on the student's own texts, with a policy gradient for "
           "what later tokens owe to earlier ones."),
    Recipe("DistiLLM", "arXiv:2402.03898", skewed, causal(), prose),
    Recipe("AKL", "arXiv:2404.02657", head_and_tail, causal(), prose,
           "Forward and reverse KL, weighed by where the two models differ."),
    Recipe("f-distillation", "arXiv:2307.15190", total_variations, causal(), prose),
    Recipe("ULD", "arXiv:2402.12030", other_vocabulary, causal(24), prose,
           "Teacher and student have vocabularies of their own. Positions are compared as they "
           "stand: the text must be cut into as many tokens by both, or aligned first."),
    Recipe("MultiLevelOT", "arXiv:2412.14528", transported, causal(24), prose),
    Recipe("Sparse logit sampling", "arXiv:2503.16870", drawn_logits, causal(), prose,
           "The draws may come from a file: they are three fields of the batch then."),
    Recipe("On-policy distillation", "arXiv:2306.13649", on_policy, texts(), words,
           "The student's own tokens; with both models' logits at hand `reverse_kl` has less "
           "variance."),
]  # fmt: skip
