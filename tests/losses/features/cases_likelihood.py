"""Rows of the Gaussian likelihoods, the logarithmic distance and Jacobian matching."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import norm

from fkd.losses import jacobian_matching, log_distance, pad, vid

from ..case import Case, pair

LOG_SCALE = torch.tensor([0.3, -0.4, 0.1, 0.0], dtype=torch.float64)
LOG_VARIANCE = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(3, 5)


def vid_reference(s, t, *, log_scale):
    scale = np.exp(log_scale).reshape(1, -1, *[1] * (s.ndim - 2))
    likelihood = norm.logpdf(t, loc=s, scale=scale) + 0.5 * np.log(2 * np.pi)
    return -likelihood.reshape(len(s), -1).mean(-1)


def pad_reference(s, t, *, log_variance, eps=1e-6):
    return ((s - t) ** 2 / (np.exp(log_variance) + eps) + log_variance).mean(-1)


def log_reference(s, t, *, exponent=4.0, eps=1e-12, over="position"):
    power = np.abs(s - t) ** exponent
    return np.log(eps + (power.sum(-1) if over == "position" else power.sum()))


def jacobian_reference(s, t, *, normalize=True):
    s, t = s.reshape(len(s), -1), t.reshape(len(t), -1)
    if normalize:
        s, t = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (s, t))
    return ((s - t) ** 2).sum(-1)


def density(loss, inputs, reference, **kwargs):
    return Case(
        loss,
        inputs,
        reference,
        zero_at_equality=False,
        nonnegative=False,
        note="a negative log-density or a logarithm",
        **kwargs,
    )


CASES = [
    density(vid, pair(3, 4, 2, 2), vid_reference, kwargs={"log_scale": LOG_SCALE}),
    density(pad, pair(3, 5), pad_reference, kwargs={"log_variance": LOG_VARIANCE}),
    density(log_distance, pair(3, 4, 5), log_reference, positions=2),
    density(
        log_distance,
        pair(3, 5),
        log_reference,
        kwargs={"exponent": 2.0},
        name="log_distance square",
    ),
    density(
        log_distance,
        pair(3, 4, 5),
        log_reference,
        positions=2,
        relational=True,
        permutes=True,
        kwargs={"over": "batch"},
        name="log_distance batch",
    ),
    Case(jacobian_matching, pair(3, 2, 4), jacobian_reference),
    Case(
        jacobian_matching,
        pair(3, 2, 4),
        jacobian_reference,
        kwargs={"normalize": False},
        name="jacobian_matching sobolev",
    ),
]
