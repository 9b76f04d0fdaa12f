"""Rows of the transforms of logits and of the temperatures; more laws in test_teacher_logits.py.

The transforms take no mask (`positions=0`): they map one position to one position.
"""

from __future__ import annotations

import numpy as np
from scipy.special import log_softmax, softmax

from fkd.losses import (
    corrected_teacher,
    ctkd_temperature,
    cwsm_temperature,
    flsw_temperature,
    probability_shift,
    replace_wrong,
    standardize,
)

from ..case import Case, normal
from ..labels.cases_labels import labelled

FREE = {"positions": 0, "zero_at_equality": False, "nonnegative": False}


def standardize_reference(z):
    return (z - z.mean(-1, keepdims=True)) / (z.std(-1, ddof=1, keepdims=True) + 1e-7)


def corrected_reference(teacher, labels, *, threshold=0.0, always=False):
    out = []
    for z, y in zip(teacher, labels, strict=True):
        p = softmax(z)
        lead = np.delete(p, y).max() - p[y]
        k = (lead + threshold) / (1 + lead) if lead + (threshold if always else 0) > 0 else 0.0
        out.append(np.log((1 - k) * p + k * (np.arange(len(p)) == y)))
    return np.array(out)


def corrected_code_reference(teacher, labels, *, threshold=0.0, always=True, convention="code"):
    out = []
    for z, y in zip(teacher, labels, strict=True):
        p = softmax(z)
        if p.argmax() == y:
            k = (min(p[y] + threshold, 1) - p[y]) / (1 - p[y])
        else:
            k = (p.max() - p[y] + threshold) / (1 + p.max() - p[y])
        with np.errstate(divide="ignore"):
            out.append(np.log((1 - k) * p + k * (np.arange(len(p)) == y)))
    return np.array(out)


def shift_reference(teacher, labels):
    out = teacher.copy()
    for z, y in zip(out, labels, strict=True):
        m = z.argmax()
        z[[y, m]] = z[[m, y]]
    return out


def virtual_reference(labels, num_classes, *, correct=0.9):
    p = np.full((len(labels), num_classes), (1 - correct) / (num_classes - 1))
    p[np.arange(len(labels)), labels] = correct
    return np.log(p)


def replace_reference(teacher, labels, *, correct=0.9):
    virtual = virtual_reference(labels, teacher.shape[1], correct=correct)
    return np.where((teacher.argmax(-1) == labels)[:, None], teacher, virtual)


def flsw_reference(student, teacher, *, base=4.0, beta=1.0, gamma=1.0):
    norms = np.linalg.norm(student, axis=-1) * np.linalg.norm(teacher, axis=-1)
    w = (1 - (student * teacher).sum(-1) / norms) ** gamma
    return (base + beta * (w.mean() - w))[..., None]


def cwsm_reference(student, *, base=4.0, beta=1.0):
    w = 1 / (np.exp(log_softmax(student, axis=-1)).max(-1) + 1e-3)
    return (base + beta * (w.mean() - w))[..., None]


def two(g):
    return normal(5, 7)(g), normal(5, 7)(g)


CASES = [
    Case(standardize, lambda g: (normal(5, 7)(g),), standardize_reference, **FREE),
    Case(corrected_teacher, labelled(6, classes=4), corrected_reference, **FREE),
    Case(
        corrected_teacher,
        labelled(6, classes=4),
        corrected_reference,
        {"threshold": 0.3, "always": True},
        name="corrected_teacher-always",
        **FREE,
    ),
    Case(
        corrected_teacher,
        labelled(6, classes=4),
        corrected_code_reference,
        {"threshold": 0.1, "always": True, "convention": "code"},
        name="corrected_teacher-code",
        **FREE,
    ),
    Case(
        corrected_teacher,
        labelled(6, classes=4),
        corrected_code_reference,
        {"threshold": 0.6, "always": True, "convention": "code"},
        gradcheck=(),
        name="corrected_teacher-code-certain",
        **FREE,
    ),
    Case(probability_shift, labelled(6, classes=4), shift_reference, **FREE),
    Case(replace_wrong, labelled(6, classes=2), replace_reference, {"correct": 0.8}, **FREE),
    Case(
        ctkd_temperature,
        lambda g: (normal(5, 1)(g),),
        lambda g: 1 + 20 / (1 + np.exp(-g)),
        gradcheck=(),
        note="the gradient is reversed by design; checked in test_teacher_logits.py",
        **FREE,
    ),
    Case(flsw_temperature, two, flsw_reference, {"beta": 2.0, "gamma": 1.5}, **FREE),
    Case(cwsm_temperature, lambda g: (normal(5, 7)(g),), cwsm_reference, {"beta": 0.5}, **FREE),
]

NOT_LOSSES = {
    "reverse_gradient": "the identity; laws in test_teacher_logits.py",
    "virtual_teacher": "logits from labels; laws in test_teacher_logits.py",
}
