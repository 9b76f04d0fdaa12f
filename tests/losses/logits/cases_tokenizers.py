"""Rows of the losses between two tokenizers."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import rel_entr, softmax

from fkd.losses import alm, gold, shared_kl

from ..case import Case, normal


def shared_reference(student, teacher, ours, theirs, *, temperature=1.0):
    q, p = (softmax(x / temperature, axis=-1) for x in (student, teacher))
    q, p = q[..., ours], p[..., theirs]
    rest = rel_entr(1 - p.sum(-1), 1 - q.sum(-1))
    return temperature**2 * (rel_entr(p, q).sum(-1) + rest)


def alm_reference(student, teacher, *, temperature=1.0):
    q, p = np.exp(student / temperature), np.exp(teacher / temperature)
    return rel_entr(p, q) + rel_entr(1 - p, 1 - q)


def gold_reference(student, teacher, ours, theirs, *, beta=0.5, matched=None):
    q, p = np.exp(student), np.exp(teacher)
    share = len(ours) / p.shape[-1] if matched is None else matched
    a, b = p[..., theirs], q[..., ours]
    m = beta * a + (1 - beta) * b
    entries = (beta * rel_entr(a, m) + (1 - beta) * rel_entr(b, m)).sum(-1)
    rest = [-np.sort(-np.delete(x, i, axis=-1)) for x, i in ((p, theirs), (q, ours))]
    sizes = [x.shape[-1] for x in rest]
    rest = [
        np.concatenate([x, np.zeros((*x.shape[:-1], max(sizes) - n))], axis=-1)
        for x, n in zip(rest, sizes, strict=True)
    ]
    return share * entries + (1 - share) * np.abs(rest[0] - rest[1]).sum(-1)


def merged(*shape, **sizes):
    """Logs of distributions that sum to less than 1."""

    def make(g):
        s, t, *ids = vocabularies(*shape, **sizes)(g)
        less = torch.rand(*shape, 1, generator=g, dtype=torch.float64)
        return (s.log_softmax(-1) - less, t.log_softmax(-1) - less.flip(0), *ids)

    return make


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
    Case(gold, merged(5, student=7, teacher=9, shared=4), gold_reference, **SHARED),
    Case(
        gold,
        merged(2, 5, student=8, teacher=6, shared=5),
        gold_reference,
        {"beta": 0.9, "matched": 0.25},
        positions=2,
        name="gold-sequence",
        **SHARED,
    ),
    Case(alm, spans(2, 5), alm_reference, {"temperature": 2.0}, positions=2),
]

NOT_LOSSES = {
    "merged_log_probs": "what gold takes; laws in test_tokenizers.py",
    "token_log_probs": "what losses of drawn tokens take; laws in test_tokenizers.py",
    "span_log_probs": "what alm takes; laws in test_tokenizers.py",
    "project_vocabulary": "another distribution and no loss; laws in test_projected.py",
    "policy_reverse_kl": "its value and its gradient are of different functions; laws in "
    "test_on_policy.py",
}
