"""Rows of activation boundaries, partial distances, generated maps and factors."""

from __future__ import annotations

import numpy as np

from fkd.losses import activation_boundary, factor_transfer, mgd, partial_l2

from ..case import Case, pair

NOT_LOSSES = {
    "margin_relu": "tests/losses/test_activation.py",
    "negative_mean": "tests/losses/test_activation.py",
}


def boundary_reference(s, t, *, margin=1.0):
    s, t = s.reshape(len(s), -1), t.reshape(len(t), -1)
    out = np.zeros(len(s))
    for b, d in np.ndindex(*s.shape):
        out[b] += max(margin - s[b, d] if t[b, d] > 0 else margin + s[b, d], 0.0) ** 2
    return out


def partial_reference(s, t):
    s, t = s.reshape(len(s), -1), t.reshape(len(t), -1)
    return np.where((s <= t) & (t <= 0), 0.0, (s - t) ** 2).sum(-1)


def mgd_reference(s, t):
    return ((s - t) ** 2).reshape(len(s), -1).sum(-1)


def factor_reference(s, t, *, norm="l1"):
    s, t = s.reshape(len(s), -1), t.reshape(len(t), -1)
    d = s / np.linalg.norm(s, axis=1)[:, None] - t / np.linalg.norm(t, axis=1)[:, None]
    return np.linalg.norm(d, ord=1, axis=1) if norm == "l1" else (d**2).sum(1)


CASES = [
    Case(
        activation_boundary,
        pair(3, 4, 2, 2),
        boundary_reference,
        zero_at_equality=False,
        note="the student keeps a margin from 0 even where it equals the teacher",
    ),
    Case(
        activation_boundary,
        pair(3, 4),
        boundary_reference,
        kwargs={"margin": 0.5},
        zero_at_equality=False,
        name="activation_boundary margin 0.5",
    ),
    Case(partial_l2, pair(3, 4, 2, 2), partial_reference),
    Case(mgd, pair(3, 4, 2, 2), mgd_reference),
    Case(factor_transfer, pair(3, 4, 2, 2), factor_reference),
    Case(
        factor_transfer,
        pair(3, 4),
        factor_reference,
        kwargs={"norm": "l2"},
        name="factor_transfer l2",
    ),
]
