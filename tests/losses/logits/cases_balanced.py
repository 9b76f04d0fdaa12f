"""Rows of the alpha-beta family, of ToDi and of TAID. References are the papers' sums."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import log_softmax, rel_entr, softmax

from fkd.losses import TAIDState, ab_divergence, taid, todi

from ..case import Case, pair
from .cases_kl import SEQUENCE, excluding, softened, squared, teacher_excludes


def ab_reference(student, teacher, *, alpha=0.2, beta=0.7, temperature=1.0):
    q, p = softened(student, teacher, temperature)
    a, b = alpha, beta
    if a == 0 and b == 0:
        each = 0.5 * np.log(p / q) ** 2
    elif a == 0:
        each = (q**b * np.log(q**b / p**b) - q**b + p**b) / b**2
    elif b == 0:
        each = (p**a * np.log(p**a / q**a) - p**a + q**a) / a**2
    elif a == -b:
        each = (np.log(q**a / p**a) + (q**a / p**a) ** -1 - 1) / a**2
    else:
        each = a / (a + b) * p ** (a + b) + b / (a + b) * q ** (a + b) - p**a * q**b
        each = each / (a * b)
    return squared(temperature) * each.sum(-1)


def todi_reference(student, teacher, *, forward_weight=None, temperature=1.0):
    q, p = softened(student, teacher, temperature)
    both = np.where(p + q > 0, p + q, 1.0)
    w = p / both if forward_weight is None else forward_weight
    forward = np.where(p > 0, w, 0.0) * np.where(w > 0, rel_entr(p, q), 0.0)
    reverse = np.where(w < 1, (1 - w) * rel_entr(q, p), 0.0)
    return squared(temperature) * (forward + reverse).sum(-1)


def taid_reference(
    student, teacher, *, state, floor=0.0, ceiling=1.0, rate=5e-4, momentum=0.99, temperature=1.0
):
    del floor, ceiling, rate, momentum  # act on the state only
    t = float(state.t)
    mixed = ((1 - t) * student + t * teacher) / temperature
    m, log_q = softmax(mixed, axis=-1), log_softmax(student / temperature, axis=-1)
    return temperature**2 * (m * (log_softmax(mixed, axis=-1) - log_q)).sum(-1)


def state(t, loss=float("inf"), momentum=0.0):
    return TAIDState(*(torch.tensor(x) for x in (t, loss, momentum)))


def ab(name, inputs=None, **kwargs):
    inputs = pair(5, 7) if inputs is None else inputs
    return Case(ab_divergence, inputs, ab_reference, kwargs, name=f"ab_divergence {name}")


CASES = [
    ab("default"),
    ab("warm", temperature=2.0),
    ab("far", pair(5, 7, scale=6.0), alpha=1.0, beta=0.5),
    ab("kl", alpha=1.0, beta=0.0),
    ab("reverse kl", alpha=0.0, beta=1.0),
    ab("itakura-saito", alpha=0.5, beta=-0.5),
    ab("logs", alpha=0.0, beta=0.0),
    ab("negative", alpha=1.5, beta=-0.25),
    Case(ab_divergence, SEQUENCE, ab_reference, positions=2, name="ab_divergence sequence"),
    Case(ab_divergence, excluding, ab_reference, gradcheck=(), name="ab_divergence excluded"),
    Case(
        ab_divergence,
        teacher_excludes,
        ab_reference,
        gradcheck=(0,),
        name="ab_divergence teacher excludes",
    ),
    Case(todi, pair(5, 7), todi_reference, gradcheck=(), note="w is held; test_balanced.py"),
    Case(
        todi,
        SEQUENCE,
        todi_reference,
        {"temperature": 2.0},
        positions=2,
        gradcheck=(),
        name="todi sequence",
    ),
    Case(
        todi,
        pair(5, 7),
        todi_reference,
        {"forward_weight": torch.linspace(0, 1, 35, dtype=torch.float64).reshape(5, 7)},
        nonnegative=False,
        name="todi weight",
    ),
    Case(todi, excluding, todi_reference, gradcheck=(), name="todi excluded"),
] + [
    Case(
        taid,
        pair(5, 7),
        taid_reference,
        {"state": start, **kwargs},
        gradcheck=(1,),
        shared=("state",),
        rtol=1e-6,
        note="the student in the target is held; test_balanced.py",
        name=f"taid {label}",
    )
    for label, start, kwargs in [
        ("first", state(0.4), {}),
        ("later", state(0.5, 2.0, 0.25), {"floor": 0.3, "temperature": 2.0}),
    ]
]

NOT_LOSSES = {"taid_init": "test_balanced.py"}
