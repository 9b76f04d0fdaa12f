"""Rows of the losses between rankings, and between vocabularies."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import rel_entr, softmax

from fkd.losses import (
    adaptive_layer_kl,
    hinge_ranking,
    in_batch_kl,
    listwise_kl,
    logistic_ranking,
    margin_mse,
    multi_level_ot,
    sinkhorn_ot,
    uld,
)

from ..case import Case, normal, pair
from ..logits.cases_kl import SEQUENCE, kl_reference


def margin_mse_reference(student, teacher):
    out = [
        np.mean([((s[0] - s[j]) - (t[0] - t[j])) ** 2 for j in range(1, len(s))])
        for s, t in flat(student, teacher)
    ]
    return np.reshape(out, student.shape[:-1])


def flat(student, teacher):
    rows = (x.reshape(-1, x.shape[-1]) for x in (student, teacher))
    return list(zip(*rows, strict=True))


def pairwise(phi):
    """Mean of phi(s_i - s_j) over the pairs with t_i > t_j."""

    def reference(student, teacher, **kwargs):
        out = []
        for s, t in flat(student, teacher):
            n = range(len(s))
            pairs = [phi(s[i] - s[j], **kwargs) for i in n for j in n if t[i] > t[j]]
            out.append(np.mean(pairs) if pairs else 0.0)
        return np.reshape(out, student.shape[:-1])

    return reference


def listwise_reference(student, teacher, *, candidates, temperature=1.0):
    rows = zip(student, teacher, candidates, strict=True)
    return np.array([kl_reference(s[c], t[c], temperature=temperature) for s, t, c in rows])


def in_batch_reference(sq, tq, sd, td, *, temperature=0.05):
    def scores(a, b):
        cos = (a @ b.T) / np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
        return softmax(cos / temperature, axis=1)

    return rel_entr(scores(tq, td), scores(sq, sd)).sum(1)


def uld_reference(student, teacher, *, temperature=1.0):
    out = []
    for s, t in flat(student, teacher):
        q, p = (np.sort(softmax(x / temperature))[::-1] for x in (s, t))
        size = max(len(q), len(p))
        q, p = (np.pad(x, (0, size - len(x))) for x in (q, p))
        out.append(np.abs(p - q).sum())
    return np.reshape(out, student.shape[:-1])


def by_rank(x, k, temperature):
    """Probabilities of one sequence, the k classes of the largest sums in order."""
    p = softmax(x / temperature, axis=-1)
    p = p[:, np.argsort(-p.sum(0))[:k]]
    return np.pad(p, ((0, 0), (0, k - p.shape[1])))


def multi_level_reference(student, teacher, *, k=50, logarithmic=0.1, temperature=1.0):
    out = []
    for s, t in zip(student, teacher, strict=True):
        q, p = by_rank(s, k, temperature), by_rank(t, k, temperature)
        log_q = np.log(np.where(q > 0, q, 1.0))
        out.append(np.abs(p - q).sum(-1) - logarithmic * (p * log_q).sum(-1))
    return np.array(out)


def sinkhorn_reference(student, teacher, *, k=50, entropy=0.1, iterations=20, temperature=1.0):
    out = []
    for s, t in zip(student, teacher, strict=True):
        q, p = by_rank(s, k, temperature), by_rank(t, k, temperature)
        cost = np.array([[np.abs(a - b).sum() for b in q] for a in p])
        u, v, kernel = np.ones(len(p)), np.ones(len(q)), np.exp(-cost / entropy)
        for _ in range(iterations):
            u = 1 / (kernel @ v)
            v = 1 / (kernel.T @ u)
        plan = u[:, None] * kernel * v[None, :]
        out.append((plan * cost).sum() / plan.sum())
    return np.array(out)


def ragged(g):
    student, teacher = pair(5, 7)(g)
    return student, teacher


CANDIDATES = torch.arange(7) < torch.tensor([7, 3, 1, 5, 2])[:, None]


def four(g):
    return normal(5, 4)(g), normal(5, 6)(g), normal(5, 4)(g), normal(5, 6)(g)


def vocabularies(*shape, student, teacher):
    return lambda g: (normal(*shape, student)(g), normal(*shape, teacher)(g))


TWO = vocabularies(2, 4, student=5, teacher=7)
WARM = {"k": 4, "temperature": 2.0}
FREE = {"zero_at_equality": False}

CASES = [
    Case(margin_mse, pair(5, 7), margin_mse_reference),
    Case(margin_mse, SEQUENCE, margin_mse_reference, positions=2, name="margin_mse-sequence"),
    Case(
        hinge_ranking,
        pair(5, 6),
        pairwise(lambda gap, margin: max(0.0, margin - gap)),
        {"margin": 0.5},
        gradcheck=(0,),
        **FREE,
    ),
    Case(
        logistic_ranking,
        pair(5, 6),
        pairwise(lambda gap, scale: np.log1p(np.exp(-scale * gap))),
        {"scale": 2.0},
        gradcheck=(0,),
        **FREE,
    ),
    Case(listwise_kl, pair(5, 7), kl_reference, {"temperature": 2.0}),
    Case(
        listwise_kl, ragged, listwise_reference, {"candidates": CANDIDATES}, name="listwise-ragged"
    ),
    Case(
        in_batch_kl,
        four,
        in_batch_reference,
        {"temperature": 0.2},
        relational=True,
        zero_at_equality=False,
        note="equality needs equal documents too; in test_ranking.py",
    ),
    Case(
        adaptive_layer_kl,
        pair(5, 7),
        lambda s, t: kl_reference(s, t, temperature=0.3) / 0.3,
    ),
    Case(uld, vocabularies(5, student=5, teacher=7), uld_reference, {"temperature": 2.0}),
    Case(uld, SEQUENCE, uld_reference, positions=2, name="uld-sequence"),
    Case(multi_level_ot, TWO, multi_level_reference, WARM, positions=2, relational=True, **FREE),
    Case(
        multi_level_ot,
        TWO,
        multi_level_reference,
        positions=2,
        relational=True,
        name="multi_level_ot-all",
        **FREE,
    ),
    Case(sinkhorn_ot, TWO, sinkhorn_reference, WARM, positions=2, relational=True, **FREE),
    Case(
        sinkhorn_ot,
        pair(2, 4, 5),
        sinkhorn_reference,
        positions=2,
        relational=True,
        name="sinkhorn_ot-same",
        **FREE,
    ),
]
