"""Rows of the divergences to mixtures and of the alpha family."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import rel_entr

from fkd.losses import (
    adaptive_kl,
    adaptive_kl_weight,
    alpha_divergence,
    jsd,
    renyi,
    skew_kl,
    skew_reverse_kl,
    total_variation,
)

from ..case import Case, pair
from .cases_kl import SEQUENCE, WARM, excluding, softened, squared, teacher_excludes


def jsd_reference(student, teacher, *, beta=0.5, temperature=1.0):
    q, p = softened(student, teacher, temperature)
    m = beta * p + (1 - beta) * q
    values = beta * rel_entr(p, m).sum(-1) + (1 - beta) * rel_entr(q, m).sum(-1)
    return squared(temperature) * values


def skew_kl_reference(student, teacher, *, skew=0.1, temperature=1.0):
    q, p = softened(student, teacher, temperature)
    return squared(temperature) * rel_entr(p, skew * p + (1 - skew) * q).sum(-1)


def skew_reverse_kl_reference(student, teacher, *, skew=0.1, temperature=1.0):
    return skew_kl_reference(teacher, student, skew=skew, temperature=temperature)


def alpha_reference(student, teacher, *, alpha=0.5, temperature=1.0):
    q, p = softened(student, teacher, temperature)
    overlap = (p**alpha * q ** (1 - alpha)).sum(-1)
    return squared(temperature) * (1 - overlap) / (alpha * (1 - alpha))


def renyi_reference(student, teacher, *, alpha=0.5, temperature=1.0):
    q, p = softened(student, teacher, temperature)
    overlap = (p**alpha * q ** (1 - alpha)).sum(-1)
    return squared(temperature) * np.log(overlap) / (alpha - 1)


def total_variation_reference(student, teacher, *, temperature=1.0):
    q, p = softened(student, teacher, temperature)
    return np.maximum(p - q, 0).sum(-1)


def weight_reference(student, teacher, *, head=0.5, temperature=1.0):
    q, p = softened(student, teacher, temperature)
    out = []
    for p_row, q_row in zip(p.reshape(-1, p.shape[-1]), q.reshape(-1, q.shape[-1]), strict=True):
        size, mass, order = 0, 0.0, np.argsort(-p_row)
        while mass < head:
            mass += p_row[order[size]]
            size += 1
        gap = np.abs(p_row - q_row)
        out.append(0.5 if gap.sum() == 0 else gap[order[:size]].sum() / gap.sum())
    return np.reshape(out, p.shape[:-1])


def adaptive_kl_reference(student, teacher, *, head=0.5, forward_weight=None, temperature=1.0):
    q, p = softened(student, teacher, temperature)
    w = weight_reference(student, teacher, head=head, temperature=temperature)
    w = w if forward_weight is None else forward_weight
    forward, reverse = rel_entr(p, q).sum(-1), rel_entr(q, p).sum(-1)
    return squared(temperature) * (w * forward + (1 - w) * reverse)


FIXED = {"forward_weight": torch.linspace(0.0, 1.0, 5, dtype=torch.float64)}
HELD = {"gradcheck": (), "note": "the weight is held constant; checked in test_kl.py"}

CASES = [
    Case(jsd, pair(5, 7), jsd_reference),
    Case(jsd, pair(5, 7), jsd_reference, {"beta": 0.9, **WARM}, name="jsd-temperatures"),
    Case(jsd, SEQUENCE, jsd_reference, {"beta": 0.1}, positions=2, name="jsd-sequence"),
    Case(jsd, excluding, jsd_reference, gradcheck=(), name="jsd-excluded"),
    Case(jsd, teacher_excludes, jsd_reference, gradcheck=(0,), name="jsd-teacher-excludes"),
    Case(skew_kl, pair(5, 7), skew_kl_reference, {"temperature": 2.0}),
    Case(skew_kl, SEQUENCE, skew_kl_reference, positions=2, name="skew_kl-sequence"),
    Case(skew_kl, excluding, skew_kl_reference, gradcheck=(), name="skew_kl-excluded"),
    Case(skew_reverse_kl, pair(5, 7), skew_reverse_kl_reference, {"temperature": 2.0}),
    Case(
        skew_reverse_kl, SEQUENCE, skew_reverse_kl_reference, positions=2, name="skew_rkl-sequence"
    ),
    Case(
        skew_reverse_kl,
        teacher_excludes,
        skew_reverse_kl_reference,
        gradcheck=(0,),
        name="skew_rkl-teacher-excludes",
    ),
    Case(alpha_divergence, pair(5, 7), alpha_reference, {"alpha": 0.3, "temperature": 2.0}),
    Case(alpha_divergence, SEQUENCE, alpha_reference, {"alpha": 2.0}, positions=2, name="alpha-2"),
    Case(alpha_divergence, pair(5, 7), alpha_reference, {"alpha": -0.5}, name="alpha-negative"),
    Case(alpha_divergence, excluding, alpha_reference, gradcheck=(), name="alpha-excluded"),
    Case(
        alpha_divergence,
        teacher_excludes,
        alpha_reference,
        gradcheck=(0,),
        name="alpha-teacher-excludes",
    ),
    Case(renyi, pair(5, 7), renyi_reference, {"alpha": 0.3, "temperature": 2.0}),
    Case(renyi, pair(5, 7, scale=6.0), renyi_reference, name="renyi-far"),
    Case(renyi, SEQUENCE, renyi_reference, {"alpha": 2.0}, positions=2, name="renyi-2"),
    Case(renyi, excluding, renyi_reference, gradcheck=(), name="renyi-excluded"),
    Case(total_variation, pair(5, 7), total_variation_reference, {"temperature": 2.0}),
    Case(total_variation, SEQUENCE, total_variation_reference, positions=2, name="tv-sequence"),
    Case(total_variation, excluding, total_variation_reference, gradcheck=(), name="tv-excluded"),
    Case(adaptive_kl, pair(5, 7), adaptive_kl_reference, {"temperature": 2.0}, **HELD),
    Case(
        adaptive_kl,
        SEQUENCE,
        adaptive_kl_reference,
        {"head": 0.8},
        positions=2,
        name="akl-0.8",
        **HELD,
    ),
    Case(adaptive_kl, pair(5, 7), adaptive_kl_reference, FIXED, name="akl-fixed-weight"),
    Case(adaptive_kl, excluding, adaptive_kl_reference, gradcheck=(), name="akl-excluded"),
    Case(adaptive_kl_weight, pair(5, 7), weight_reference, zero_at_equality=False),
]
