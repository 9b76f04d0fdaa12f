"""Rows of the losses for detectors, and of the instance relationship graph between layers."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import softmax

from fkd.losses import fgd_attention, fgd_focal, irg_transformation

from ..case import Case, pair
from .cases_maps import flat, maps

NOT_LOSSES = {"fgd_weight": "a weight from boxes; laws in test_detection.py"}
WEIGHT = torch.tensor([[[0.2, 0.7, 0.1], [0.4, 0.1, 0.3]]] * 3, dtype=torch.float64)


def attentions(x, temperature):
    x = np.abs(flat(x))
    places, channels = x.mean(1), x.mean(2)
    return (
        softmax(places / temperature, -1) * places.shape[1],
        softmax(channels / temperature, -1) * channels.shape[1],
    )


def focal_reference(s, t, *, place_weight, temperature=0.5):
    places, channels = attentions(t, temperature)
    square = (flat(s) - flat(t)) ** 2
    return np.einsum("bcp,bp,bp,bc->b", square, place_weight.reshape(len(s), -1), places, channels)


def attention_reference(s, t, *, temperature=0.5):
    both = zip(attentions(s, temperature), attentions(t, temperature), strict=True)
    return sum(np.abs(a - b).sum(-1) for a, b in both)


def moved(first, second):
    square = ((first - second) ** 2).reshape(len(first), -1).sum(-1)
    return square / square.max()


def transformation_reference(s1, t1, s2, t2):
    return (moved(s1, s2) - moved(t1, t2)) ** 2


CASES = [
    Case(fgd_focal, pair(3, 4, 2, 3), focal_reference, kwargs={"place_weight": WEIGHT}),
    Case(fgd_attention, pair(3, 4, 2, 3), attention_reference),
    Case(
        irg_transformation,
        maps((4, 2, 3), (4, 5), (4, 2, 3), (4, 5)),
        transformation_reference,
        zero_at_equality=False,
        relational=True,
        note="four inputs",
    ),
]
