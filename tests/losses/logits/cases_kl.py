"""Rows of the losses between logits. References in NumPy and SciPy, from the papers."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import log_softmax, rel_entr, xlogy

from fkd.losses import jeffreys, kl, logit_mse, reverse_kl, soft_cross_entropy

from ..case import Case, pair


def softened(student, teacher, temperature=1.0):
    """q and p of the papers."""
    q = np.exp(log_softmax(student / temperature, axis=-1))
    p = np.exp(log_softmax(teacher / temperature, axis=-1))
    return q, p


def squared(temperature):
    """T^2 of the values; a temperature a position has an axis for the classes."""
    return np.square(temperature)[..., 0] if np.ndim(temperature) else temperature**2


def kl_reference(student, teacher, *, temperature=1.0):
    q, p = softened(student, teacher, temperature)
    return squared(temperature) * rel_entr(p, q).sum(-1)


def reverse_kl_reference(student, teacher, *, temperature=1.0):
    return kl_reference(teacher, student, temperature=temperature)


def jeffreys_reference(student, teacher, *, temperature=1.0):
    q, p = softened(student, teacher, temperature)
    return squared(temperature) * (rel_entr(p, q) + rel_entr(q, p)).sum(-1)


def soft_cross_entropy_reference(student, teacher, *, temperature=1.0):
    q, p = softened(student, teacher, temperature)
    return -squared(temperature) * xlogy(p, q).sum(-1)


def logit_mse_reference(student, teacher, *, center=False):
    difference = student - teacher
    if center:
        difference = difference - difference.mean(-1, keepdims=True)
    return np.mean(difference**2, axis=-1)


def excluding(g):
    """Both models exclude class 2; the student's logits of sample 0 are the teacher's."""
    student, teacher = pair(5, 6)(g)
    student[:, 2] = teacher[:, 2] = -torch.inf
    student[0] = teacher[0]
    return student, teacher


def teacher_excludes(g):
    student, teacher = pair(5, 6)(g)
    teacher[:, 3] = -torch.inf
    return student, teacher


WARM = {"temperature": torch.rand(5, 1, generator=torch.Generator().manual_seed(3)).double() + 1}
SEQUENCE = pair(2, 5, 4)

CASES = [
    Case(kl, pair(5, 7), kl_reference),
    Case(kl, SEQUENCE, kl_reference, {"temperature": 4.0}, positions=2, name="kl-sequence"),
    Case(kl, pair(5, 7), kl_reference, WARM, name="kl-temperatures"),
    Case(kl, pair(1, 1), kl_reference, name="kl-single-class"),
    Case(kl, excluding, kl_reference, gradcheck=(), name="kl-excluded"),
    Case(kl, teacher_excludes, kl_reference, gradcheck=(0,), name="kl-teacher-excludes"),
    Case(reverse_kl, pair(5, 7), reverse_kl_reference, {"temperature": 2.0}),
    Case(reverse_kl, SEQUENCE, reverse_kl_reference, positions=2, name="reverse_kl-sequence"),
    Case(reverse_kl, excluding, reverse_kl_reference, gradcheck=(), name="reverse_kl-excluded"),
    Case(jeffreys, pair(5, 7), jeffreys_reference, {"temperature": 2.0}),
    Case(jeffreys, SEQUENCE, jeffreys_reference, positions=2, name="jeffreys-sequence"),
    Case(jeffreys, excluding, jeffreys_reference, gradcheck=(), name="jeffreys-excluded"),
    Case(
        soft_cross_entropy,
        pair(5, 7),
        soft_cross_entropy_reference,
        {"temperature": 2.0},
        zero_at_equality=False,
    ),
    Case(
        soft_cross_entropy,
        excluding,
        soft_cross_entropy_reference,
        gradcheck=(),
        zero_at_equality=False,
        name="soft_cross_entropy-excluded",
    ),
    Case(logit_mse, pair(5, 7), logit_mse_reference),
    Case(logit_mse, SEQUENCE, logit_mse_reference, positions=2, name="logit_mse-sequence"),
    Case(logit_mse, pair(5, 7), logit_mse_reference, {"center": True}, name="logit_mse-centred"),
]

NOT_LOSSES = {"counted_where": "a decorator of losses; laws in test_labels.py"}
