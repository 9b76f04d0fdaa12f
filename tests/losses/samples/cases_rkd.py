"""Rows of the losses between the relations of samples. References are loops over samples."""

from __future__ import annotations

import numpy as np

from fkd.losses import rkd_angle, rkd_distance, similarity_preserving

from ..case import Case, normal, pair


def features(*shapes):
    makers = [normal(*shape) for shape in shapes]
    return lambda g: tuple(make(g) for make in makers)


def rows(x):
    return x.reshape(len(x), -1)


def smooth(x, y):
    d = np.abs(x - y)
    return np.where(d < 1, d**2 / 2, d - 0.5)


def sp_reference(s, t):
    gs, gt = (rows(x) @ rows(x).T for x in (s, t))
    gs, gt = (g / np.linalg.norm(g, axis=1, keepdims=True) for g in (gs, gt))
    return ((gs - gt) ** 2).mean(1)


def relative_distances(x):
    n = len(x)
    d = np.array([[np.linalg.norm(a - b) for b in rows(x)] for a in rows(x)])
    mu = d.sum() / max(n * (n - 1), 1)
    return d / mu if mu else d


def distance_reference(s, t):
    return smooth(relative_distances(s), relative_distances(t)).mean(1)


def cosines(x):
    n = len(x)
    x, out = rows(x), np.zeros((n, n, n))
    for j, i, k in np.ndindex(n, n, n):
        a, b = x[i] - x[j], x[k] - x[j]
        sides = np.linalg.norm(a) * np.linalg.norm(b)
        out[j, i, k] = a @ b / sides if sides else 0.0
    return out


def angle_reference(s, t):
    return smooth(cosines(s), cosines(t)).mean((1, 2))


CASES = [
    Case(loss, inputs, reference, relational=True, name=f"{loss.__name__} {label}".strip())
    for loss, reference in [
        (similarity_preserving, sp_reference),
        (rkd_distance, distance_reference),
        (rkd_angle, angle_reference),
    ]
    for label, inputs in [
        ("", pair(5, 3)),
        ("other width", features((5, 3), (5, 2, 2))),
        ("batch of one", pair(1, 3)),
    ]
]
