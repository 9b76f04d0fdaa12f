"""Language models."""

from __future__ import annotations

import torch

import fkd
from fkd import batch, call, student, teacher, term
from fkd.losses import (
    ab_divergence,
    adaptive_kl,
    alm,
    cross_entropy,
    gold,
    jsd,
    kl,
    merged_log_probs,
    mse,
    multi_level_ot,
    policy_reverse_kl,
    reverse_kl,
    sample,
    sampled_kl,
    sampled_reverse_kl,
    shared_kl,
    sinkhorn_ot,
    skew_kl,
    skew_reverse_kl,
    span_log_probs,
    taid,
    taid_init,
    todi,
    token_log_probs,
    total_variation,
    uld,
)

from ._recipe import Recipe
from ._small import adapter, causal, prose, texts, tokenized, two_texts, words, written


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


def contrastive():
    # Rows of the batch: texts of the teacher, then as many of the student.
    counts = call(fkd.loops.next_tokens, batch.labels) != -100
    half = call(len, batch.labels) // 2
    ours, theirs = student.logits, teacher.logits
    return {
        "of_teacher": term(skew_kl, ours[:half], theirs[:half], skew=0.1, where=counts[:half]),
        "of_student": term(
            skew_reverse_kl, ours[half:], theirs[half:], skew=0.1, where=counts[half:]
        ),
    }


def sampled_tokens():
    # batch.teacher_log_probs: what the teacher (a server) says of the tokens that were drawn;
    # batch.behaviour: what the student said that drew them.
    counts = batch.targets != -100
    log_q = call(token_log_probs, student.logits, batch.targets)
    return {
        "reverse_kl": term(
            policy_reverse_kl, log_q, batch.teacher_log_probs, behaviour=batch.behaviour,
            clip=0.2, where=counts,
        ),
    }  # fmt: skip


def split_rewards():
    counts = batch.targets != -100
    log_q = call(token_log_probs, student.logits, batch.targets)
    log_p = call(token_log_probs, teacher.logits, batch.targets)
    return {
        "step": term(reverse_kl, student.logits, teacher.logits, where=counts),
        "later": term(policy_reverse_kl, log_q, log_p, discount=1.0, skip=1, where=counts),
    }


def after_pruning():
    counts = call(fkd.loops.next_tokens, batch.labels) != -100
    widened = fkd.module("widen")(student.hidden_states[-1])
    return {
        "kd": term(kl, student.logits, teacher.logits, where=counts),
        "hidden": term(mse, widened, teacher.hidden_states[-1], where=batch.labels >= 0),
    }


def accepted():
    # A drafter's token is accepted with probability 1 - TVD.
    counts = call(fkd.loops.next_tokens, batch.labels) != -100
    return {
        "rejected": term(total_variation, student.logits, teacher.logits, where=counts),
        "warm": term(kl, student.logits, teacher.logits, where=counts, weight=0.1),
    }


def two_tokenizers():
    # batch.both and batch.spans: fkd.loops.language.align, in the collate function;
    # the ids that both vocabularies have: fkd.loops.language.shared_vocabulary.
    ours, theirs = torch.arange(20), torch.arange(20)
    log_q = call(token_log_probs, student.logits, batch.targets)
    log_p = call(token_log_probs, teacher.logits, batch.teacher_targets)
    spans = batch.spans
    return {
        "shared": term(
            shared_kl,
            call(fkd.loops.take, student.logits, batch.both.student),
            call(fkd.loops.take, teacher.logits, batch.both.teacher),
            ours, theirs, where=batch.both.student.kept,
        ),
        "spans": term(
            alm,
            call(span_log_probs, log_q, spans.student, spans.kept),
            call(span_log_probs, log_p, spans.teacher, spans.kept),
            where=spans.kept, temperature=10.0,
        ),
    }  # fmt: skip


def merged():
    # The ids that both vocabularies have: fkd.loops.language.shared_vocabulary.
    ours, theirs = torch.arange(20), torch.arange(20)
    spans = batch.spans
    mine = (student.logits, batch.targets, spans.student, spans.kept)
    other = (teacher.logits, batch.teacher_targets, spans.teacher, spans.kept)
    log_q, log_p = call(merged_log_probs, *mine), call(merged_log_probs, *other)
    return {"gold": term(gold, log_q, log_p, ours, theirs, where=spans.kept)}


def interpolated():
    counts = call(fkd.loops.next_tokens, batch.labels) != -100
    way = fkd.schedules.linear(0.4, 1.0, steps=10_000)  # the steps of the run
    return {
        "taid": term(
            taid, student.logits, teacher.logits, state=taid_init(0.4), floor=way, where=counts
        )
    }


def allocated():
    counts = call(fkd.loops.next_tokens, batch.labels) != -100
    return {
        "abkd": term(
            ab_divergence, student.logits, teacher.logits, alpha=0.2, beta=0.7, where=counts
        )
    }


def token_wise():
    targets = call(fkd.loops.next_tokens, batch.labels)
    return {
        "todi": term(todi, student.logits, teacher.logits, where=targets != -100, weight=0.5),
        "labels": term(cross_entropy, student.logits, targets, weight=0.5),
    }


def drawn_logits():
    def draws(logits):
        noise = torch.rand(*logits.shape[:-1], 8, device=logits.device)
        return tuple(sample(logits, noise))

    drawn = call(draws, teacher.logits)
    counts = call(fkd.loops.next_tokens, batch.labels) != -100
    return {"kd": term(sampled_kl, student.logits, drawn[0], drawn[1], drawn[2], where=counts)}


def differences():
    def bild(student_logits, teacher_logits, *, k, temperature, where=None):
        def gaps(logits, places):
            first, second = torch.triu_indices(k, k, 1)
            top = logits.gather(-1, places)
            return top[..., first] - top[..., second]

        leaders = [x.topk(k, -1).indices for x in (teacher_logits, student_logits)]
        pairs = [[gaps(x, led) for x in (student_logits, teacher_logits)] for led in leaders]
        return sum(kl(*pair, temperature=temperature, where=where) for pair in pairs)

    return {
        "bild": term(
            bild, student.logits, teacher.logits, k=8, temperature=3.0, where=batch.attention_mask
        )
    }


RECIPES = [
    Recipe("Word-level distillation", "arXiv:1606.07947", word_level, causal(), prose,
           "The label of a position is the token after it: `next_tokens`. Sequence-level "
           "distillation is `cross_entropy` on texts that the teacher wrote."),
    Recipe("Generalised distillation (GKD)", "arXiv:2306.13649", generalized, causal(), prose,
           "On texts of the student, of the teacher or of people, mixed by the loader."),
    Recipe("MiniLLM", "arXiv:2306.08543", mode_seeking, causal(), prose,
           "Reverse KL by token; there, on the student's own texts, with a policy gradient for "
           "what later tokens owe to earlier ones."),
    Recipe("Differences of logits (BiLD)", "arXiv:2406.13555", differences, causal(), prose,
           "Of the eight greatest logits, the teacher's and the student's, all differences between "
           "two, as two distributions."),
    Recipe("DistiLLM", "arXiv:2402.03898", skewed, causal(), prose),
    Recipe("DistiLLM-2", "arXiv:2503.07067", contrastive, causal(), prose,
           "Skewed KL on texts of the teacher, reversed on those of the student: "
           "`fkd.loops.language.generator` writes both."),
    Recipe("On-policy distillation from a server", "Lu and Thinking Machines, 2025",
           sampled_tokens, causal(), written,
           "One number a token from the teacher; `fit(prepare=on_policy(...))` makes the batches."),
    Recipe("MiniLLM with rewards", "arXiv:2306.08543", split_rewards, causal(), written,
           "The position itself exactly, what it does to later ones as a reward; together the "
           "gradient of the KL between whole texts."),
    Recipe("Minitron", "arXiv:2407.14679", after_pruning,
           causal(widen=adapter(lambda: torch.nn.Linear(8, 16))), prose,
           "After layers are cut (`init_from_layers`), or widths, which need the projection."),
    Recipe("Speculative drafter (DistillSpec)", "arXiv:2310.08461", accepted, causal(), prose,
           "The total variation is the probability that a draft is rejected; best on texts of the "
           "drafter."),
    Recipe("Approximate likelihood matching", "arXiv:2503.20083", two_tokenizers, two_texts,
           tokenized, "Spans of text between boundaries of both tokenizers; beside it, the "
           "entries that both vocabularies have."),
    Recipe("GOLD", "Patiño et al., 2025", merged, two_texts, tokenized,
           "Tokens between boundaries of both tokenizers are merged: the first one's distribution, "
           "times the probability of the others. Best on texts of the student, "
           "`fit(prepare=on_policy(...))`, aligned by `fkd.loops.language.align`."),
    Recipe("AKL", "arXiv:2404.02657", head_and_tail, causal(), prose,
           "Forward and reverse KL, weighed by where the two models differ."),
    Recipe("TAID", "arXiv:2501.16937", interpolated, causal(), prose,
           "The target moves from the student to the teacher, faster while the loss falls."),
    Recipe("ABKD", "arXiv:2505.04560", allocated, causal(), prose,
           "The numbers are those for language models there."),
    Recipe("ToDi", "arXiv:2505.16297", token_wise, causal(), prose,
           "Each class of each token has its own share of forward and reverse KL."),
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
