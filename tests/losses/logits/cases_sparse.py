"""Rows of the losses on a sparse teacher."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import log_softmax, rel_entr

from fkd.losses import sampled_cross_entropy, sampled_kl, top_k_kl

from ..case import Case, normal


def student_log_probs(student, ids, temperature):
    log_q = log_softmax(student / temperature, axis=-1)
    return np.take_along_axis(log_q, ids, axis=-1)


def top_k_reference(student, log_p, ids, *, rest="tail", temperature=1.0):
    p, q = np.exp(log_p), np.exp(student_log_probs(student, ids, temperature))
    if rest == "renormalize":
        p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    values = (p * np.log(p / q)).sum(-1)
    if rest == "tail":
        values = values + rel_entr(1 - p.sum(-1), 1 - q.sum(-1))
    return temperature**2 * values


def sampled_reference(student, log_p, ids, weights, *, temperature=1.0):
    log_q = student_log_probs(student, ids, temperature)
    return temperature**2 * (weights * (log_p - log_q)).sum(-1)


def sampled_cross_entropy_reference(student, ids, weights, *, temperature=1.0):
    return -(temperature**2) * (weights * student_log_probs(student, ids, temperature)).sum(-1)


def listed(*shape, vocab, k):
    """Student logits, and the log-probabilities of k distinct classes of a teacher."""

    def make(g):
        log_p, ids = normal(*shape, vocab)(g).log_softmax(-1).topk(k)
        return normal(*shape, vocab)(g), log_p, ids

    return make


def drawn(*shape, vocab, draws):
    """The same for draws with replacement, and weights."""

    def make(g):
        ids = torch.randint(vocab, (*shape, draws), generator=g)
        log_p = normal(*shape, vocab)(g).log_softmax(-1).gather(-1, ids)
        weights = torch.rand(*shape, draws, generator=g, dtype=torch.float64)
        return normal(*shape, vocab)(g), log_p, ids, weights

    return make


def drawn_ids(*shape, **sizes):
    def make(g):
        student, _, ids, weights = drawn(*shape, **sizes)(g)
        return student, ids, weights

    return make


SPARSE = listed(5, vocab=9, k=3)
SEQUENCE = listed(2, 5, vocab=6, k=2)
FREE = {"zero_at_equality": False, "nonnegative": False}

CASES = [
    Case(top_k_kl, SPARSE, top_k_reference, {"temperature": 2.0}, half_rtol=1e-3),
    Case(top_k_kl, SEQUENCE, top_k_reference, positions=2, name="top_k_kl-sequence"),
    Case(top_k_kl, SPARSE, top_k_reference, {"rest": "renormalize"}, name="top_k_kl-renormalize"),
    Case(
        top_k_kl,
        SPARSE,
        top_k_reference,
        {"rest": "truncate"},
        name="top_k_kl-truncate",
        nonnegative=False,
    ),
    Case(sampled_kl, drawn(5, vocab=9, draws=4), sampled_reference, {"temperature": 2.0}, **FREE),
    Case(
        sampled_kl,
        drawn(2, 5, vocab=6, draws=3),
        sampled_reference,
        positions=2,
        name="sampled_kl-sequence",
        **FREE,
    ),
    Case(
        sampled_cross_entropy,
        drawn_ids(5, vocab=9, draws=4),
        sampled_cross_entropy_reference,
        {"temperature": 2.0},
        zero_at_equality=False,
    ),
]

NOT_LOSSES = {
    "sample": "a record of a teacher; laws in test_sparse.py",
    "top_k": "a record of a teacher; laws in test_sparse.py",
}
