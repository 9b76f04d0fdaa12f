"""Rows of the transport costs. The reference scales the rows and columns of exp(-C / epsilon)."""

from __future__ import annotations

import numpy as np
import torch

from fkd.losses import bert_emd, sinkhorn

from ..case import Case, pair
from ..features.cases_maps import maps

NOT_LOSSES = {"sinkhorn_plan": "tests/losses/test_transport.py"}
STUDENT_WHERE = torch.tensor([[1, 1, 0], [1, 0, 1], [1, 1, 1]]).bool()
WEIGHT = torch.tensor([0.7, 0.1, 0.2], dtype=torch.float64)


def transport(cost, a, b, epsilon, iterations):
    k = np.exp(-cost / epsilon)
    v = np.ones(len(b))
    for _ in range(iterations):
        u = a / (k @ v)
        v = b / (k.T @ u)
    return (u[:, None] * k * v * cost).sum()


def costs(s, t):
    return ((s[:, None] - t) ** 2).mean(-1)


def sinkhorn_reference(s, t, *, epsilon=0.1, iterations=50, student_where=None):
    out = np.zeros(len(s))
    for i, (x, y) in enumerate(zip(s, t, strict=True)):
        x = x if student_where is None else x[student_where[i]]
        a, b = np.full(len(x), 1 / len(x)), np.full(len(y), 1 / len(y))
        out[i] = transport(costs(x, y), a, b, epsilon, iterations)
    return out


def emd_reference(s, t, *, epsilon, iterations=50, student_weight=None):
    out = np.zeros(len(s))
    for i, (x, y) in enumerate(zip(s, t, strict=True)):
        cost = np.mean([costs(xl, yl) for xl, yl in zip(x, y, strict=True)], axis=0)
        a, b = np.full(cost.shape[0], 1 / cost.shape[0]), np.full(cost.shape[1], 1 / cost.shape[1])
        a = a if student_weight is None else student_weight
        out[i] = transport(cost, a, b, epsilon, iterations)
    return out


def blurred(loss, inputs, reference, **kwargs):
    return Case(
        loss, inputs, reference, zero_at_equality=False, note="the plan is blurred", **kwargs
    )


CASES = [
    blurred(sinkhorn, maps((3, 3, 4), (3, 2, 4)), sinkhorn_reference, kwargs={"iterations": 10}),
    blurred(
        sinkhorn,
        pair(3, 3, 4),
        sinkhorn_reference,
        kwargs={"student_where": STUDENT_WHERE, "epsilon": 0.5},
        name="sinkhorn masked tokens",
    ),
    blurred(
        bert_emd,
        maps((2, 4, 3, 5), (2, 4, 2, 5)),
        emd_reference,
        kwargs={"epsilon": 0.2, "iterations": 10},
        positions=2,
        relational=True,
    ),
    blurred(
        bert_emd,
        maps((2, 4, 3, 5), (2, 4, 4, 5)),
        emd_reference,
        kwargs={"epsilon": 1.0, "student_weight": WEIGHT},
        positions=2,
        relational=True,
        name="bert_emd weights",
    ),
]
