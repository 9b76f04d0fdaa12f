"""Rows of kernels, neighbourhoods, graph edges, InfoNCE and CKA. References are loops."""

from __future__ import annotations

from math import exp, factorial

import numpy as np
from scipy.special import log_softmax

from fkd.losses import (
    cka,
    cka_linear,
    cka_rbf,
    correlation_congruence,
    cos_nce,
    infonce,
    irg_edge,
    pkt,
)

from ..case import Case, pair
from .cases_rkd import features, rows


def cosines(x):
    x = rows(x) / np.linalg.norm(rows(x), axis=1, keepdims=True)
    return x @ x.T


def squares(x):
    return np.array([[((a - b) ** 2).sum() for b in rows(x)] for a in rows(x)])


def congruence_reference(s, t, *, kernel="gaussian", gamma=0.4, order=2):
    def matrix(x):
        c = cosines(x)
        if kernel == "linear":
            return c
        terms = [exp(-2 * gamma) * (2 * gamma) ** p / factorial(p) * c**p for p in range(order + 1)]
        return sum(terms)

    return ((matrix(s) - matrix(t)) ** 2).mean(1)


def pkt_reference(s, t, *, convention="paper", eps=1e-7):
    n, out = len(s), np.zeros(len(s))
    ks, kt = (0.5 + cosines(x) / 2 + eps for x in (s, t))
    for i in range(n):
        others = [j for j in range(n) if convention == "code" or j != i]
        p, q = (k[i, others] / k[i, others].sum() for k in (kt, ks))
        out[i] = (p * np.log(p / q)).sum()
    return out


def edge_reference(s, t):
    es, et = (d / d.max() if d.max() else d for d in (squares(s), squares(t)))
    return ((es - et) ** 2).mean(1)


def infonce_reference(s, t, *, temperature=0.07):
    s, t = (rows(x) / np.linalg.norm(rows(x), axis=1, keepdims=True) for x in (s, t))
    return -np.diag(log_softmax(s @ t.T / temperature, axis=1))


def cos_nce_reference(s, t):
    s, t = (rows(x) / np.linalg.norm(rows(x), axis=1, keepdims=True) for x in (s, t))
    out = np.zeros(len(s))
    for i, anchor in enumerate(s):
        near = 1 - anchor @ t[i]
        far = [(2 - ((1 - anchor @ t[j]) - near)) / 2 for j in range(len(t)) if j != i]
        out[i] = near + (np.mean(far) if far else 0.0)
    return out


def hsic(k, l):
    n = len(k)
    h = np.eye(n) - 1 / n
    return np.trace(k @ h @ l @ h)


def cka_reference(s, t, *, kernel="linear", bandwidth=1.0):
    def matrix(x):
        if kernel == "linear":
            return rows(x) @ rows(x).T
        d = squares(x)
        return np.exp(-d / (2 * bandwidth**2 * d.sum() / (len(x) * (len(x) - 1))))

    k, l = matrix(s), matrix(t)
    return hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))


def misalignment(kernel):
    return lambda s, t, **kwargs: 1 - cka_reference(s, t, kernel=kernel, **kwargs)


WIDTHS = features((5, 3), (5, 2, 2))


def relational(loss, inputs, reference, **kwargs):
    return Case(loss, inputs, reference, relational=True, **kwargs)


CASES = [
    relational(correlation_congruence, WIDTHS, congruence_reference),
    relational(
        correlation_congruence,
        pair(5, 3),
        congruence_reference,
        kwargs={"gamma": 0.8, "order": 3},
        name="correlation_congruence order 3",
    ),
    relational(
        correlation_congruence,
        pair(5, 3),
        congruence_reference,
        kwargs={"kernel": "linear"},
        name="correlation_congruence linear",
    ),
    relational(pkt, WIDTHS, pkt_reference),
    relational(pkt, pair(5, 3), pkt_reference, kwargs={"convention": "code"}, name="pkt code"),
    relational(pkt, pair(1, 3), pkt_reference, name="pkt batch of one"),
    relational(irg_edge, WIDTHS, edge_reference),
    relational(irg_edge, pair(5, 3), edge_reference, name="irg_edge same width"),
    relational(irg_edge, pair(1, 3), edge_reference, name="irg_edge batch of one"),
    relational(
        infonce,
        pair(5, 3),
        infonce_reference,
        zero_at_equality=False,
        note="the other samples remain candidates",
    ),
    relational(
        cos_nce,
        pair(5, 3),
        cos_nce_reference,
        zero_at_equality=False,
        note="the other samples remain negatives",
    ),
    relational(
        cos_nce,
        pair(1, 3),
        cos_nce_reference,
        zero_at_equality=False,
        note="no negatives",
        name="cos_nce batch of one",
    ),
    relational(
        cka, WIDTHS, cka_reference, zero_at_equality=False, note="a similarity: 1 at equality"
    ),
    relational(
        cka,
        WIDTHS,
        cka_reference,
        kwargs={"kernel": "rbf", "bandwidth": 0.7},
        zero_at_equality=False,
        name="cka rbf",
    ),
    relational(cka_linear, WIDTHS, misalignment("linear"), rtol=1e-8),
    relational(cka_linear, pair(5, 3), misalignment("linear"), name="cka_linear same width"),
    relational(cka_rbf, WIDTHS, misalignment("rbf")),
    relational(
        cka_rbf, pair(5, 3), misalignment("rbf"), kwargs={"bandwidth": 2.0}, name="cka_rbf wide"
    ),
]
