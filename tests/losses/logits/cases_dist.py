"""Rows of the correlation losses, of multi-level logit distillation, and of SKD."""

from __future__ import annotations

import numpy as np

from fkd.losses import (
    dist,
    dist_channel,
    dist_inter,
    dist_intra,
    dist_spatial,
    mlkd_batch,
    mlkd_class,
    mlkd_instance,
    skd_direction,
)

from ..case import Case, pair
from .cases_kl import SEQUENCE, excluding, kl_reference, softened


def inter_reference(student, teacher, *, temperature=1.0):
    q, p = softened(student, teacher, temperature)
    shape, v = q.shape[:-1], q.shape[-1]
    rows = zip(q.reshape(-1, v), p.reshape(-1, v), strict=True)
    return np.reshape([1 - np.corrcoef(a, b)[0, 1] for a, b in rows], shape)


def intra_reference(student, teacher, *, temperature=1.0):
    q, p = softened(student, teacher, temperature)
    v = q.shape[-1]
    q, p = q.reshape(-1, v), p.reshape(-1, v)
    return np.array([1 - np.corrcoef(q[:, c], p[:, c])[0, 1] for c in range(v)])


def dist_reference(student, teacher, *, beta=1.0, gamma=1.0, scale=False, temperature=1.0):
    inter = inter_reference(student, teacher, temperature=temperature).mean()
    intra = intra_reference(student, teacher, temperature=temperature).mean()
    return (temperature**2 if scale else 1) * (beta * inter + gamma * intra)


def channel_reference(student, teacher):
    n, _, h, w = student.shape
    rho = [
        [np.corrcoef(student[b, :, i, j], teacher[b, :, i, j])[0, 1] for i in range(h)]
        for b in range(n)
        for j in range(w)
    ]
    return 1 - np.reshape(rho, (n, -1)).mean(-1)


def spatial_reference(student, teacher):
    s, t = student.sum(1), teacher.sum(1)
    return np.array(
        [1 - np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(s, t, strict=True)]
    )


def instance_reference(student, teacher, *, temperatures=(2.0, 3.0, 4.0, 5.0, 6.0)):
    return sum(kl_reference(student, teacher, temperature=t) for t in temperatures)


def batch_reference(student, teacher, *, temperature=1.0):
    q, p = softened(student, teacher, temperature)
    return np.linalg.norm(q @ q.T - p @ p.T) ** 2 / len(q)


def class_reference(student, teacher, *, temperature=1.0):
    q, p = softened(student, teacher, temperature)
    return np.linalg.norm(q.T @ q - p.T @ p) ** 2 / q.shape[1]


def direction_reference(student, teacher, *, ridge=0.1):
    s = student / np.linalg.norm(student, axis=1, keepdims=True)
    t = teacher / np.linalg.norm(teacher, axis=1, keepdims=True)
    d = s @ s.T - t @ t.T
    inverse = np.linalg.inv(np.cov(d, rowvar=False) + ridge * np.eye(len(d)))
    return np.sqrt(np.einsum("bi,ij,bj->b", d, inverse, d))


CASES = [
    Case(dist_inter, pair(5, 7), inter_reference, {"temperature": 4.0}),
    Case(dist_inter, SEQUENCE, inter_reference, positions=2, name="dist_inter-sequence"),
    Case(dist_inter, excluding, inter_reference, gradcheck=(), name="dist_inter-excluded"),
    Case(dist_intra, pair(5, 7), intra_reference, {"temperature": 4.0}, relational=True),
    Case(
        dist_intra,
        SEQUENCE,
        intra_reference,
        positions=2,
        relational=True,
        name="dist_intra-sequence",
    ),
    Case(dist, pair(5, 7), dist_reference, {"beta": 0.3, "temperature": 4.0}, relational=True),
    Case(
        dist,
        SEQUENCE,
        dist_reference,
        {"scale": True, "temperature": 2.0},
        positions=2,
        relational=True,
        name="dist-sequence",
    ),
    Case(dist_channel, pair(3, 4, 2, 3), channel_reference),
    Case(dist_spatial, pair(3, 4, 2, 3), spatial_reference),
    Case(mlkd_instance, pair(5, 7), instance_reference),
    Case(mlkd_instance, SEQUENCE, instance_reference, positions=2, name="mlkd_instance-sequence"),
    Case(mlkd_batch, pair(5, 7), batch_reference, {"temperature": 2.0}, relational=True),
    Case(mlkd_class, pair(5, 7), class_reference, {"temperature": 2.0}, relational=True),
    Case(skd_direction, pair(5, 7), direction_reference, relational=True),
]
