"""Rows of the feature-map losses with attention weights."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from scipy.special import softmax

from fkd.losses import afd, afds, fbkd_attention, fbkd_masked, semckd

from ..case import Case, pair
from .cases_maps import at_reference, flat, maps, unit

WEIGHT = torch.tensor([0.2, 0.7, 0.4], dtype=torch.float64)
CHANNELS = torch.tensor([[0.2, 0.7], [0.4, 0.1], [0.9, 0.3]], dtype=torch.float64)


def semckd_reference(s, t, *, attention):
    return attention * ((s - t) ** 2).reshape(len(s), -1).mean(-1)


def afd_reference(s, t, *, attention):
    return attention * at_reference(s, t, convention="code")


def afds_reference(s, t, *, attention):
    return (attention * ((unit(flat(s)) - unit(flat(t))) ** 2).mean(-1)).sum(-1)


def magnitudes(x):
    return np.abs(flat(x)).mean(1), np.abs(flat(x)).mean(2)


def fbkd_attention_reference(s, t):
    both = zip(magnitudes(s), magnitudes(t), strict=True)
    return sum(np.linalg.norm(a - b, axis=-1) for a, b in both)


def fbkd_masked_reference(s, t, *, temperature=0.5):
    (ps, cs), (pt, ct) = magnitudes(s), magnitudes(t)
    m = softmax((ps + pt) / temperature, -1) * ps.shape[1]
    n = softmax((cs + ct) / temperature, -1) * cs.shape[1]
    square = (flat(s) - flat(t)) ** 2
    return np.sqrt(np.einsum("bcp,bp,bc->b", square, m, n))


CASES = [
    Case(semckd, pair(3, 4, 2), semckd_reference, kwargs={"attention": WEIGHT}),
    Case(afd, maps((3, 4, 2, 2), (3, 2, 2, 2)), afd_reference, kwargs={"attention": WEIGHT}),
    Case(afds, pair(3, 2, 2, 3), afds_reference, kwargs={"attention": CHANNELS}),
    Case(fbkd_attention, pair(3, 2, 2, 3), fbkd_attention_reference),
    Case(fbkd_masked, pair(3, 2, 2, 3), fbkd_masked_reference),
    Case(
        partial(fbkd_masked, temperature=2.0),
        pair(3, 2, 4),
        partial(fbkd_masked_reference, temperature=2.0),
        name="fbkd_masked T 2",
    ),
]
