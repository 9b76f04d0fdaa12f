"""Rows of the losses against labels."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import expit, log_expit, log_softmax, rel_entr, xlogy

from fkd.losses import binary_cross_entropy, binary_kl, cross_entropy, focal, hard_label

from ..case import Case, normal, pair


def labelled(*shape, classes, ignored=0):
    """Logits and labels; the first `ignored` labels are -100."""

    def make(g):
        labels = torch.randint(classes, shape, generator=g)
        labels.view(-1)[:ignored] = -100
        return normal(*shape, classes)(g), labels

    return make


def picked(student, labels, *, ignore_index=-100):
    """Log-probabilities, those of the labels, and which positions count."""
    log_q = log_softmax(student, axis=-1)
    counts = labels != ignore_index
    index = np.where(counts, labels, 0)[..., None]
    return log_q, np.take_along_axis(log_q, index, axis=-1)[..., 0], counts


def cross_entropy_reference(student, labels, *, ignore_index=-100, label_smoothing=0.0):
    log_q, log_q_y, counts = picked(student, labels, ignore_index=ignore_index)
    values = -log_q_y
    if label_smoothing:
        values = (1 - label_smoothing) * values - label_smoothing * log_q.mean(-1)
    return np.where(counts, values, 0.0)


def focal_reference(student, labels, *, gamma=2.0, ignore_index=-100):
    _, log_q_y, counts = picked(student, labels, ignore_index=ignore_index)
    return np.where(counts, -((1 - np.exp(log_q_y)) ** gamma) * log_q_y, 0.0)


def hard_label_reference(student, teacher, *, label_smoothing=0.0):
    return cross_entropy_reference(student, teacher.argmax(-1), label_smoothing=label_smoothing)


def binary_cross_entropy_reference(student, labels):
    q = expit(student)
    return -(xlogy(labels, q) + xlogy(1 - labels, 1 - q)).mean(-1)


def binary_kl_reference(student, teacher, *, temperature=1.0):
    q, p = expit(student / temperature), expit(teacher / temperature)
    return temperature**2 * (rel_entr(p, q) + rel_entr(1 - p, 1 - q)).mean(-1)


def soft_labels(g):
    return normal(5, 7)(g), torch.rand(5, 7, generator=g, dtype=torch.float64)


def hard_labels(g):
    student = normal(5, 7)(g)
    labels = torch.randint(2, (5, 7), generator=g)
    student[:, 0], labels[:, 0] = -torch.inf, 0
    return student, labels


def shares(g):
    """Labels that are distributions."""
    return normal(5, 7)(g), normal(5, 7)(g).softmax(-1)


def shares_reference(student, labels, *, label_smoothing=0.0):
    smoothed = (1 - label_smoothing) * labels + label_smoothing / labels.shape[-1]
    return -(smoothed * log_softmax(student, axis=-1)).sum(-1)


def excluded_class(g):
    """A class with the logit -inf that is no label."""
    student, labels = labelled(5, classes=6)(g)
    return torch.cat([student, torch.full((5, 1), -torch.inf)], -1), labels


LABELS = labelled(6, classes=7, ignored=1)
SEQUENCE = labelled(2, 5, classes=4, ignored=2)
TASK = {"zero_at_equality": False}

CASES = [
    Case(cross_entropy, LABELS, cross_entropy_reference, **TASK),
    Case(
        cross_entropy,
        SEQUENCE,
        cross_entropy_reference,
        {"label_smoothing": 0.1},
        positions=2,
        name="cross_entropy-smoothed",
        **TASK,
    ),
    Case(
        cross_entropy,
        excluded_class,
        cross_entropy_reference,
        gradcheck=(),
        name="cross_entropy-excluded",
        **TASK,
    ),
    Case(cross_entropy, shares, shares_reference, name="cross_entropy-distributions", **TASK),
    Case(
        cross_entropy,
        shares,
        shares_reference,
        {"label_smoothing": 0.2},
        name="cross_entropy-distributions-smoothed",
        **TASK,
    ),
    Case(focal, LABELS, focal_reference, **TASK),
    Case(focal, SEQUENCE, focal_reference, {"gamma": 0.5}, positions=2, name="focal-0.5", **TASK),
    Case(hard_label, pair(5, 7), hard_label_reference, gradcheck=(0,), **TASK),
    Case(
        hard_label,
        pair(2, 5, 4),
        hard_label_reference,
        {"label_smoothing": 0.1},
        positions=2,
        gradcheck=(0,),
        name="hard_label-smoothed",
        **TASK,
    ),
    Case(binary_cross_entropy, soft_labels, binary_cross_entropy_reference, **TASK),
    Case(
        binary_cross_entropy,
        hard_labels,
        lambda s, y: -np.where(y == 1, log_expit(s), log_expit(-s)).mean(-1),
        gradcheck=(),
        name="binary_cross_entropy-hard",
        **TASK,
    ),
    Case(binary_kl, pair(5, 7), binary_kl_reference, {"temperature": 2.0}),
    Case(binary_kl, pair(2, 5, 4), binary_kl_reference, positions=2, name="binary_kl-sequence"),
]
