"""Rows of the losses between attention maps. References are loops over pairs of tokens.

`where` masks queries and keys, so the mask laws that slice leading axes do not apply (positions
= 0); they are in test_attention.py.
"""

from __future__ import annotations

import numpy as np
import torch

from fkd.losses import (
    attention_cross_entropy,
    attention_kl,
    attention_mse,
    attention_scores_kl,
)

from ..case import Case

RAGGED = torch.tensor([[1, 1, 1, 0, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]])
KEYS = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]])


def scores(query=5, key=5):
    def make(g):
        shape = (3, 2, query, key)
        return tuple(torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))

    return make


def probabilities(query=5, key=5):
    return lambda g: tuple(x.softmax(-1) for x in scores(query, key)(g))


def causal(g):
    future = torch.ones(5, 5).triu(1).bool()
    return tuple(x.masked_fill(future, -torch.inf) for x in scores()(g))


def causal_probabilities(g):
    return tuple(x.softmax(-1) for x in causal(g))


def rows(student, teacher, where, key_where, value):
    """`value(s, t)` of every row of scores over the keys that count, mean over heads."""
    batch, head, query, key = student.shape
    where = np.ones((batch, query)) if where is None else where
    if key_where is None:
        key_where = where if query == key else np.ones((batch, key))
    out = np.zeros((batch, query))
    for b, i in np.ndindex(batch, query):
        keys = np.flatnonzero(key_where[b])
        if where[b, i] and len(keys):
            heads = [value(student[b, h, i, keys], teacher[b, h, i, keys]) for h in range(head)]
            out[b, i] = np.mean(heads)
    return out


def both(s, t):
    """The pairs that neither model has masked."""
    return (s > -np.inf) | (t > -np.inf)


def squares(s, t):
    return sum((a - b) ** 2 for a, b in zip(s, t, strict=True) if both(a, b))


def mse_reference(student, teacher, *, where=None, key_where=None, normalize="query"):
    if normalize == "query":
        return rows(student, teacher, where, key_where, lambda s, t: squares(s, t) / len(s))
    heads, where = student.shape[1], np.ones(student.shape[::2]) if where is None else where
    totals = rows(student, teacher, where, None, lambda s, t: squares(s, t) * heads)
    return totals.sum(), heads * (where.sum(-1) ** 2).sum()


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def divergence(q, p):
    return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def kl_reference(student, teacher, *, where=None, key_where=None):
    return rows(
        student, teacher, where, key_where, lambda q, p: divergence(q / q.sum(), p / p.sum())
    )


def scores_kl_reference(student, teacher, *, where=None, key_where=None):
    return rows(student, teacher, where, key_where, lambda s, t: divergence(softmax(s), softmax(t)))


def cross_entropy_reference(student, teacher, *, where=None, key_where=None):
    def value(q, p):
        q, p = q / q.sum(), p / p.sum()
        return -sum(a * np.log(b) for a, b in zip(p, q, strict=True) if a > 0)

    return rows(student, teacher, where, key_where, value)


FAMILY = [
    (attention_mse, scores, mse_reference, True),
    (attention_kl, probabilities, kl_reference, True),
    (attention_scores_kl, scores, scores_kl_reference, True),
    (attention_cross_entropy, probabilities, cross_entropy_reference, False),
]

CASES = (
    [
        Case(
            loss,
            make(5, key),
            reference,
            kwargs=kwargs,
            positions=0,
            zero_at_equality=zero,
            half_rtol=2e-4,
            atol=1e-9,
            name=f"{loss.__name__} {label}",
        )
        for loss, make, reference, zero in FAMILY
        for label, key, kwargs in [
            ("plain", 5, {}),
            ("masked", 5, {"where": RAGGED}),
            ("cross", 4, {"where": RAGGED, "key_where": KEYS}),
        ]
    ]
    + [
        Case(
            attention_mse,
            scores(),
            mse_reference,
            kwargs={"normalize": "pair", **kwargs},
            positions=0,
            relational=True,
            name=f"attention_mse pair {label}",
        )
        for label, kwargs in [("plain", {}), ("masked", {"where": RAGGED})]
    ]
    + [
        Case(
            loss,
            make,
            reference,
            positions=0,
            gradcheck=(),
            half_rtol=2e-4,
            atol=1e-9,
            zero_at_equality=zero,
            note="no finite difference at -inf or at the border of the simplex",
            name=f"{loss.__name__} causal",
        )
        for loss, make, reference, zero in [
            (attention_mse, causal, mse_reference, True),
            (attention_scores_kl, causal, scores_kl_reference, True),
            (attention_kl, causal_probabilities, kl_reference, True),
            (attention_cross_entropy, causal_probabilities, cross_entropy_reference, False),
        ]
    ]
)

NOT_LOSSES = {"match_heads": "test_attention.py"}
