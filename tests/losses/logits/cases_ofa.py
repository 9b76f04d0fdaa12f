"""Rows of the losses at the label, or at one sampled token."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from scipy.special import log_softmax, softmax

from fkd.losses import ofa, sampled_reverse_kl

from ..case import Case, normal
from .cases_decoupled import rows

NOT_LOSSES = {
    "least_wrong": "a mask from a teacher; laws in test_selection.py",
    "head_agreement": "laws in tests/losses/head",
    "head_divergence": "laws in tests/losses/head",
    "head_divergence_and_metrics": "laws in tests/losses/head",
    "head_metrics": "laws in tests/losses/head",
}


@rows
def ofa_reference(s, t, y, *, gamma=1.5, convention="paper", temperature=1.0):
    log_q, p = log_softmax(s / temperature), softmax(t / temperature)
    others = p if convention == "paper" else p**gamma
    label = (1 + p[y]) ** gamma - (convention == "code")
    return -label * log_q[y] - np.delete(others * log_q, y).sum()


@rows
def sampled_reference(s, t, x, *, estimator="k2", temperature=1.0):
    ratio = softmax(t / temperature)[x] / softmax(s / temperature)[x]
    if estimator == "k3":
        return ratio - 1 - np.log(ratio)
    return -np.log(ratio) if estimator == "k1" else np.log(ratio) ** 2 / 2


def labelled(*shape, classes):
    """Logits of both models, and labels."""
    make = normal(*shape, classes)
    return lambda g: (make(g), make(g), torch.randint(classes, shape, generator=g))


UNLIKE = {"zero_at_equality": False}
CASES = [
    Case(ofa, labelled(2, 3, classes=5), ofa_reference, positions=2, **UNLIKE),
    Case(
        partial(ofa, gamma=2.5, temperature=2.0, convention="code"),
        labelled(4, classes=3),
        partial(ofa_reference, gamma=2.5, temperature=2.0, convention="code"),
        name="ofa code",
        **UNLIKE,
    ),
    *(
        Case(
            partial(sampled_reverse_kl, estimator=estimator, temperature=1.5),
            labelled(2, 3, classes=5),
            partial(sampled_reference, estimator=estimator, temperature=1.5),
            positions=2,
            nonnegative=estimator != "k1",
            name=f"sampled_reverse_kl {estimator}",
        )
        for estimator in ("k1", "k2", "k3")
    ),
]
