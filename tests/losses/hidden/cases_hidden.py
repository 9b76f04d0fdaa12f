"""Rows of the losses between hidden states."""

from __future__ import annotations

import numpy as np

from fkd.losses import cosine, l1, l2, mse, pkd, smooth_l1

from ..case import Case, pair


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def mse_reference(s, t):
    return ((s - t) ** 2).sum(-1) / s.shape[-1]


def l1_reference(s, t, *, normalize=False):
    return np.abs(unit(s) - unit(t) if normalize else s - t).mean(-1)


def l2_reference(s, t, *, normalize=False):
    return np.linalg.norm(unit(s) - unit(t) if normalize else s - t, axis=-1)


def smooth_l1_reference(s, t, *, beta=1.0):
    d = np.abs(s - t)
    return np.where(d < beta, d**2 / (2 * beta), d - beta / 2).mean(-1)


def cosine_reference(s, t):
    return 1 - (s * t).sum(-1) / np.linalg.norm(s, axis=-1) / np.linalg.norm(t, axis=-1)


CASES = [
    Case(mse, pair(3, 4, 5), mse_reference, positions=2),
    Case(mse, pair(4, 1), mse_reference, name="mse one feature"),
    Case(l1, pair(3, 4, 5), l1_reference, positions=2),
    Case(l1, pair(4, 5), l1_reference, kwargs={"normalize": True}, name="l1 normalized"),
    Case(l2, pair(3, 4, 5), l2_reference, positions=2),
    Case(l2, pair(4, 5), l2_reference, kwargs={"normalize": True}, name="l2 normalized"),
    Case(smooth_l1, pair(3, 4, 5), smooth_l1_reference, positions=2),
    Case(
        smooth_l1, pair(4, 5), smooth_l1_reference, kwargs={"beta": 0.3}, name="smooth_l1 beta 0.3"
    ),
    Case(cosine, pair(3, 4, 5), cosine_reference, positions=2),
    Case(pkd, pair(3, 4, 5), lambda s, t: 2 * cosine_reference(s, t), positions=2),
]
