"""Rows of the decoupled losses and of the label-driven weights."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import log_softmax, rel_entr, softmax

from fkd.losses import dkd, nkd, uskd_others, uskd_soft_label, uskd_target, wsld, wsld_weight

from ..case import Case, normal
from ..labels.cases_labels import cross_entropy_reference, labelled
from .cases_kl import soft_cross_entropy_reference


def rows(fn):
    """A reference of one position, over all positions."""

    def over(student, teacher, labels, **kwargs):
        flat = zip(
            student.reshape(-1, student.shape[-1]),
            teacher.reshape(-1, teacher.shape[-1]),
            labels.reshape(-1),
            strict=True,
        )
        return np.reshape([fn(s, t, y, **kwargs) for s, t, y in flat], labels.shape)

    return over


@rows
def dkd_reference(s, t, y, *, alpha=1.0, beta=8.0, temperature=1.0):
    q, p = softmax(s / temperature), softmax(t / temperature)
    target = rel_entr([p[y], 1 - p[y]], [q[y], 1 - q[y]]).sum()
    others = rel_entr(
        softmax(np.delete(t, y) / temperature), softmax(np.delete(s, y) / temperature)
    ).sum()
    return temperature**2 * (alpha * target + beta * others)


@rows
def nkd_reference(s, t, y, *, gamma=1.5, temperature=1.0):
    others_p = softmax(np.delete(t, y) / temperature)
    others_q = log_softmax(np.delete(s, y) / temperature)
    others = -(others_p * others_q).sum()
    return -softmax(t)[y] * log_softmax(s)[y] + gamma * temperature**2 * others


@rows
def uskd_others_reference(s, ranking, y):
    order = np.argsort(-np.delete(ranking, y))
    zipf = np.empty(len(order))
    zipf[order] = 1 / np.arange(1, len(order) + 1)
    return -(zipf / zipf.sum() * log_softmax(np.delete(s, y))).sum()


@rows
def uskd_others_code_reference(s, ranking, y, convention):
    assert convention == "code"
    zipf = 1 / (1 + np.argsort(np.argsort(-ranking)))
    zipf = np.delete(zipf, y)
    return -(zipf / zipf.sum() * log_softmax(np.delete(s, y))).sum()


def weight_reference(student, teacher, labels, *, eps=1e-7):
    ratio = cross_entropy_reference(student, labels) / (
        cross_entropy_reference(teacher, labels) + eps
    )
    return 1 - np.exp(-ratio)


def wsld_reference(student, teacher, labels, *, weight=None, temperature=1.0):
    weight = weight_reference(student, teacher, labels) if weight is None else weight
    return weight * soft_cross_entropy_reference(student, teacher, temperature=temperature)


def uskd_target_reference(student, labels, *, soft_label):
    return soft_label * cross_entropy_reference(student, labels)


def uskd_soft_label_reference(student, labels):
    squares = np.exp(-cross_entropy_reference(student, labels)) ** 2
    return squares + 1 - squares.mean()


def triple(*shape, classes, scale=1.0):
    def make(g):
        student, labels = labelled(*shape, classes=classes)(g)
        return scale * student, normal(*shape, classes, scale=scale)(g), labels

    return make


def excluded(g):
    """Both models exclude the class after the label."""
    student, teacher, labels = triple(5, classes=6)(g)
    gone = torch.nn.functional.one_hot((labels + 1) % 6, 6).bool()
    return student.masked_fill(gone, -torch.inf), teacher.masked_fill(gone, -torch.inf), labels


def dkd_excluded_reference(student, teacher, labels):
    """Without the class that both exclude."""
    out = []
    for s, t, y in zip(student, teacher, labels, strict=True):
        keep = np.isfinite(s)
        out.append(dkd_reference(s[keep], t[keep], np.array(keep[:y].sum())))
    return np.array(out)


ROW = {"weight": torch.linspace(0.1, 2.0, 5, dtype=torch.float64)}
SOFT = {"soft_label": torch.linspace(0.1, 2.0, 5, dtype=torch.float64)}
SEQUENCE = triple(2, 5, classes=4)
WARM = {"temperature": 4.0}
TASK = {"zero_at_equality": False}
HELD = {"gradcheck": (), "note": "the weight is held constant; checked in test_decoupled.py"}

CASES = [
    Case(dkd, triple(5, classes=7), dkd_reference, WARM),
    Case(dkd, SEQUENCE, dkd_reference, {"beta": 2.0}, positions=2, name="dkd-sequence"),
    Case(dkd, triple(5, classes=2), dkd_reference, name="dkd-two-classes"),
    Case(dkd, triple(5, classes=1), lambda s, t, y: 0 * y, name="dkd-single-class"),
    Case(dkd, excluded, dkd_excluded_reference, gradcheck=(), name="dkd-excluded"),
    Case(nkd, triple(5, classes=7), nkd_reference, WARM, **TASK),
    Case(nkd, SEQUENCE, nkd_reference, {"gamma": 2.0}, positions=2, name="nkd-sequence", **TASK),
    Case(nkd, triple(5, classes=2), nkd_reference, name="nkd-two-classes", **TASK),
    Case(wsld, triple(5, classes=7), wsld_reference, WARM, **HELD, **TASK),
    Case(wsld, triple(5, classes=7), wsld_reference, ROW, name="wsld-fixed-weight", **TASK),
    Case(wsld, SEQUENCE, wsld_reference, positions=2, name="wsld-sequence", **HELD, **TASK),
    Case(wsld_weight, triple(5, classes=7), weight_reference, **TASK),
    Case(uskd_target, labelled(5, classes=7), uskd_target_reference, SOFT, **TASK),
    Case(
        uskd_soft_label, labelled(5, classes=7), uskd_soft_label_reference, relational=True, **TASK
    ),
    Case(uskd_others, triple(5, classes=7), uskd_others_reference, gradcheck=(0,), **TASK),
    Case(
        uskd_others,
        triple(5, classes=7),
        uskd_others_code_reference,
        {"convention": "code"},
        gradcheck=(0,),
        name="uskd_others-code",
        **TASK,
    ),
    Case(
        uskd_others,
        SEQUENCE,
        uskd_others_reference,
        positions=2,
        gradcheck=(0,),
        name="uskd_others-sequence",
        **TASK,
    ),
]
