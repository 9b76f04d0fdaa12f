"""Rows of the MiniLM relations. The reference is a loop over heads and tokens."""

from __future__ import annotations

import numpy as np
import torch

from fkd.losses import minilm_relation

from ..case import Case


def inputs(*shapes):
    return lambda g: tuple(torch.randn(x, generator=g, dtype=torch.float64) for x in shapes)


def merged(x):
    """`[batch, length, hidden]` of `[batch, head, length, head_dim]`."""
    if x.ndim == 3:
        return x
    return np.concatenate([x[:, h] for h in range(x.shape[1])], axis=-1)


def relation(x, i, keys, part):
    scores = np.array([x[i, part] @ x[j, part] for j in keys]) / np.sqrt(len(x[i, part]))
    e = np.exp(scores - scores.max())
    return e / e.sum()


def reference(student, teacher, *, relation_heads, where=None):
    student, teacher = merged(student), merged(teacher)
    batch, length = student.shape[:2]
    where = np.ones((batch, length)) if where is None else where
    out = np.zeros((batch, length))
    for b, i, a in np.ndindex(batch, length, relation_heads):
        keys = np.flatnonzero(where[b])
        if where[b, i]:
            d_s, d_t = (x.shape[-1] // relation_heads for x in (student, teacher))
            q = relation(student[b], i, keys, slice(a * d_s, (a + 1) * d_s))
            p = relation(teacher[b], i, keys, slice(a * d_t, (a + 1) * d_t))
            out[b, i] += np.sum(p * np.log(p / q)) / relation_heads
    return out


CASES = [
    Case(
        minilm_relation,
        inputs((2, 5, 12), teacher),
        reference,
        kwargs={"relation_heads": heads},
        positions=2,
        relational=True,
        half_rtol=5e-4,
        atol=1e-9,
        name=f"minilm_relation {label}",
    )
    for label, teacher, heads in [
        ("same size", (2, 5, 12), 4),
        ("other size", (2, 5, 24), 3),
        ("one head", (2, 5, 6), 1),
    ]
] + [
    Case(
        minilm_relation,
        inputs((2, 3, 5, 4), (2, 2, 5, 9)),
        reference,
        kwargs={
            "relation_heads": 6,
            "where": torch.tensor([[1, 1, 0, 1, 1], [1, 1, 1, 0, 0]]),
        },
        positions=0,
        half_rtol=5e-4,
        atol=1e-9,
        note="split heads: where does not cover leading axes, so the mask is fixed",
        name="minilm_relation split heads",
    )
]
