"""Rows of the losses between two tokenizers."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import rel_entr, softmax

from fkd.losses import alm, shared_kl

from ..case import Case, normal


def shared_reference(student, teacher, ours, theirs, *, temperature=1.0):
    q, p = (softmax(x / temperature, axis=-1) for x in (student, teacher))
    q, p = q[..., ours], p[..., theirs]
    rest = rel_entr(1 - p.sum(-1), 1 - q.sum(-1))
    return temperature**2 * (rel_entr(p, q).sum(-1) + rest)


def alm_reference(student, teacher, *, temperature=1.0):
    q, p = np.exp(student / temperature), np.exp(teacher / temperature)
    return rel_entr(p, q) + rel_entr(1 - p, 1 - q)


def vocabularies(*shape, student, teacher, shared):
    def make(g):
        ids = [torch.randperm(n, generator=g)[:shared] for n in (student, teacher)]
        return (normal(*shape, student)(g), normal(*shape, teacher)(g), *ids)

    return make


def spans(*shape):
    def make(g):
        return tuple(-torch.rand(*shape, generator=g, dtype=torch.float64) - 0.1 for _ in range(2))

    return make


SHARED = {"shared": (2, 3), "zero_at_equality": False}

CASES = [
    Case(
        shared_kl,
        vocabularies(5, student=7, teacher=9, shared=4),
        shared_reference,
        {"temperature": 2.0},
        **SHARED,
    ),
    Case(
        shared_kl,
        vocabularies(2, 5, student=6, teacher=8, shared=5),
        shared_reference,
        positions=2,
        name="shared_kl-sequence",
        **SHARED,
    ),
    Case(alm, spans(2, 5), alm_reference, {"temperature": 2.0}, positions=2),
]

NOT_LOSSES = {
    "token_log_probs": "what losses of drawn tokens take; laws in test_tokenizers.py",
    "span_log_probs": "what alm takes; laws in test_tokenizers.py",
    "project_vocabulary": "another distribution and no loss; laws in test_projected.py",
    "policy_reverse_kl": "its value and its gradient are of different functions; laws in "
    "test_on_policy.py",
}
