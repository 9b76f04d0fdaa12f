"""Rows of the losses between stacks of layers, tokens and spans. References are loops."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import torch
from scipy.special import softmax

from fkd.losses import (
    alp,
    layer_angle,
    layer_relation,
    mgskd_angle,
    mgskd_pair,
    mgskd_sample,
    rail,
    universal_kd,
    word_angle,
    word_relation,
)

from ..case import Case


def inputs(*shapes):
    return lambda g: tuple(torch.randn(x, generator=g, dtype=torch.float64) for x in shapes)


def over_rows(value):
    """`value(student, teacher)` of every `[layer, hidden]` of the batch."""

    def reference(student, teacher, **kwargs):
        batch = np.ndindex(student.shape[:-2])
        out = np.zeros(student.shape[:-2])
        for b in batch:
            out[b] = value(student[b], teacher[b], **kwargs)
        return out

    return reference


def mix(s, t, allowed=None):
    scores = np.array([[a @ b for b in t] for a in s])
    if allowed is not None:
        scores = np.where(allowed, scores, -np.inf)
    return softmax(scores, axis=-1) @ t


@over_rows
def alp_reference(s, t, allowed=None):
    return np.mean((s - mix(s, t, allowed)) ** 2)


@over_rows
def rail_reference(s, t, layers):
    pairs = zip(s, t[layers], strict=True)
    return sum(np.sum((a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2) for a, b in pairs)


@over_rows
def universal_reference(s, t):
    p, q = softmax(mix(s, t), axis=-1), softmax(s, axis=-1)
    return np.sum(p * np.log(p / q))


def per_token(value):
    """`value(student, teacher, i, tokens)` for every token of every sequence."""

    def reference(student, teacher, **kwargs):
        out = np.zeros(student.shape[:-1])
        for *b, i in np.ndindex(student.shape[:-1]):
            out[(*b, i)] = value(student[tuple(b)], teacher[tuple(b)], i, **kwargs)
        return out

    return reference


def similar(x, i):
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return softmax(np.array([unit[i] @ unit[j] for j in range(len(x)) if j != i]))


@per_token
def word_relation_reference(s, t, i):
    p, q = similar(t, i), similar(s, i)
    return np.sum(p * np.log(p / q))


def cosine(x, i, j, k):
    a, b = x[i] - x[j], x[k] - x[j]
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


@per_token
def word_angle_reference(s, t, j, window=None):
    near = [i for i in range(len(s)) if i != j and abs(i - j) <= (window or len(s))]
    values = [(cosine(s, i, j, k) - cosine(t, i, j, k)) ** 2 for i, k in permutations(near, 2)]
    return np.mean(values) if values else 0.0


def layer_relation_reference(s, t):
    return word_relation_reference(s, t).mean(-1)


def layer_angle_reference(s, t):
    return word_angle_reference(s, t).mean(-1)


def heads(x, a):
    return np.split(x, a, axis=-1)


@per_token
def mgskd_pair_reference(s, t, i, relation_heads=1):
    pairs = zip(heads(s, relation_heads), heads(t, relation_heads), strict=True)
    return np.mean(
        [
            (a[i] @ a[j] / np.sqrt(a.shape[-1]) - b[i] @ b[j] / np.sqrt(b.shape[-1])) ** 2
            for a, b in pairs
            for j in range(len(s))
        ]
    )


def huber(d):
    return np.where(np.abs(d) < 1, d**2 / 2, np.abs(d) - 0.5)


@over_rows
def mgskd_angle_reference(s, t, vertices=20, neighbours=20, relation_heads=1):
    n = len(t)
    p = sum(softmax(x @ x.T / np.sqrt(x.shape[-1]), axis=-1) for x in heads(t, relation_heads))
    values = []
    for j in np.argsort(-p.sum(0))[:vertices]:
        others = [k for k in np.argsort(-p[j]) if k != j][: min(neighbours, n)]
        values += [
            huber(cosine(s, i, j, k) - cosine(t, i, j, k)) for i, k in permutations(others, 2)
        ]
    return np.mean(values) if values else 0.0


def mgskd_sample_reference(s, t, relation_heads=1):
    n, out = len(s), np.zeros(len(s))
    for a, b in zip(heads(s, relation_heads), heads(t, relation_heads), strict=True):
        for j in range(n):
            others = [i for i in range(n) if i != j]
            # i == k gives the cosine 1 to both; a side of length 0 gives 0 to both.
            out[j] += sum(
                huber(cosine(a, i, j, k) - cosine(b, i, j, k)) for i, k in permutations(others, 2)
            ) / (n * n * relation_heads)
    return out


ALLOWED = torch.tensor([[True, True, False, False], [False, True, True, True]])

CASES = [
    Case(alp, inputs((3, 2, 5), (3, 4, 5)), alp_reference, zero_at_equality=False),
    Case(
        alp,
        inputs((3, 2, 5), (3, 4, 5)),
        alp_reference,
        kwargs={"allowed": ALLOWED},
        zero_at_equality=False,
        name="alp allowed",
    ),
    Case(alp, inputs((3, 2, 5), (3, 2, 5)), alp_reference, zero_at_equality=False, name="alp 2"),
    Case(
        rail,
        inputs((3, 2, 5), (3, 4, 5)),
        rail_reference,
        kwargs={"layers": torch.tensor([1, 3])},
        shared=("layers",),
    ),
    Case(
        rail,
        inputs((3, 2, 5), (3, 2, 5)),
        rail_reference,
        kwargs={"layers": torch.tensor([0, 1])},
        shared=("layers",),
        name="rail equal depth",
    ),
    Case(universal_kd, inputs((3, 2, 5), (3, 4, 5)), universal_reference, half_rtol=5e-4),
    Case(
        word_relation,
        inputs((2, 5, 4), (2, 5, 7)),
        word_relation_reference,
        positions=2,
        relational=True,
        atol=1e-9,
    ),
    Case(
        word_relation,
        inputs((2, 5, 4), (2, 5, 4)),
        word_relation_reference,
        positions=2,
        relational=True,
        atol=1e-9,
        name="word_relation same size",
    ),
    Case(
        word_angle,
        inputs((2, 5, 4), (2, 5, 4)),
        word_angle_reference,
        positions=2,
        relational=True,
        half_rtol=5e-4,
    ),
    Case(
        word_angle,
        inputs((2, 6, 4), (2, 6, 7)),
        word_angle_reference,
        kwargs={"window": 2},
        positions=0,
        half_rtol=5e-4,
        note="a masked token is not a removed one for its neighbours: distances count",
        name="word_angle window",
    ),
    Case(layer_relation, inputs((2, 3, 4, 5), (2, 3, 4, 7)), layer_relation_reference, positions=2),
    Case(
        layer_relation,
        inputs((3, 4, 5), (3, 4, 5)),
        layer_relation_reference,
        atol=1e-9,
        name="layer_relation same size",
    ),
    Case(
        layer_angle,
        inputs((2, 3, 4, 5), (2, 3, 4, 5)),
        layer_angle_reference,
        positions=2,
        half_rtol=5e-4,
    ),
    Case(
        mgskd_pair,
        inputs((2, 5, 4), (2, 5, 8)),
        mgskd_pair_reference,
        kwargs={"relation_heads": 2},
        positions=2,
        relational=True,
        half_rtol=5e-4,
    ),
    Case(
        mgskd_pair,
        inputs((2, 5, 4), (2, 5, 4)),
        mgskd_pair_reference,
        positions=2,
        relational=True,
        name="mgskd_pair one head",
    ),
    Case(
        mgskd_angle,
        inputs((2, 6, 4), (2, 6, 8)),
        mgskd_angle_reference,
        kwargs={"vertices": 3, "neighbours": 3, "relation_heads": 2},
        positions=0,
        half_rtol=5e-4,
        name="mgskd_angle few",
    ),
    Case(
        mgskd_angle,
        inputs((2, 5, 4), (2, 5, 4)),
        mgskd_angle_reference,
        positions=0,
        half_rtol=5e-4,
        name="mgskd_angle all",
    ),
    Case(
        mgskd_sample,
        inputs((5, 4), (5, 8)),
        mgskd_sample_reference,
        kwargs={"relation_heads": 2},
        relational=True,
        half_rtol=5e-4,
    ),
    Case(
        mgskd_sample,
        inputs((5, 4), (5, 4)),
        mgskd_sample_reference,
        relational=True,
        half_rtol=5e-4,
        name="mgskd_sample one head",
    ),
]

NOT_LOSSES = {"mix_layers": "test_layers.py", "pool_spans": "test_layers.py"}
