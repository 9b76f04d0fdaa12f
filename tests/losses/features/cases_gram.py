"""Rows of the losses between inner products of feature maps. References are loops."""

from __future__ import annotations

import numpy as np

from fkd.losses import affinity, fsp, gram, ickd, nst

from ..case import Case, pair
from .cases_maps import flat, maps, pool, unit


def flow(a, b):
    if a.shape[2:] != b.shape[2:]:
        a = pool(a, b.shape[2:])
    a, b = flat(a), flat(b)
    return np.einsum("bcp,bdp->bcd", a, b) / a.shape[-1]


def fsp_reference(s1, t1, s2, t2, *, convention="paper"):
    d = (flow(s1, s2) - flow(t1, t2)) ** 2
    return d.sum((1, 2)) if convention == "paper" else d.mean((1, 2))


def gram_reference(s, t):
    return ((flow(s, s) - flow(t, t)) ** 2).mean((1, 2))


def nst_reference(s, t, *, degree=2):
    """By the feature map of the kernel: MMD^2 = |mean phi(s_c) - mean phi(t_c)|^2."""
    s, t = unit(flat(s)), unit(flat(t))
    phi = (lambda x: x) if degree == 1 else (lambda x: np.einsum("bci,bcj->bcij", x, x))
    d = phi(s).mean(1) - phi(t).mean(1)
    return (d.reshape(len(d), -1) ** 2).sum(-1)


def ickd_reference(s, t, *, convention="code"):
    gs, gt = (np.einsum("bcp,bdp->bcd", flat(x), flat(x)) for x in (s, t))
    if convention == "paper":
        return ((gs - gt) ** 2).mean((1, 2))
    return ((unit(gs) - unit(gt)) ** 2).sum((1, 2)) / gs.shape[1]


def affinity_reference(s, t):
    out = np.zeros(len(s))
    s, t = flat(s), flat(t)
    places = s.shape[-1]
    for b, i, j in np.ndindex(len(s), places, places):
        cos = [x[b, :, i] @ x[b, :, j] for x in (s, t)]
        norms = [np.linalg.norm(x[b, :, i]) * np.linalg.norm(x[b, :, j]) for x in (s, t)]
        out[b] += (cos[0] / norms[0] - cos[1] / norms[1]) ** 2 / places**2
    return out


FSP = ((3, 2, 4, 4), (3, 2, 4, 4), (3, 5, 2, 2), (3, 5, 2, 2))

CASES = [
    Case(fsp, maps(*FSP), fsp_reference, zero_at_equality=False, note="four inputs"),
    Case(
        fsp,
        maps(*FSP),
        fsp_reference,
        kwargs={"convention": "code"},
        zero_at_equality=False,
        note="four inputs",
        name="fsp code",
    ),
    Case(gram, pair(3, 2, 4, 2), gram_reference),
    Case(gram, maps((3, 2, 4), (3, 2, 3, 2)), gram_reference, name="gram other space"),
    Case(nst, pair(3, 4, 2, 3), nst_reference),
    Case(nst, maps((3, 4, 5), (3, 2, 5)), nst_reference, name="nst other channels"),
    Case(nst, pair(3, 4, 5), nst_reference, kwargs={"degree": 1}, name="nst linear"),
    Case(ickd, pair(3, 4, 2, 3), ickd_reference),
    Case(ickd, pair(3, 4, 5), ickd_reference, kwargs={"convention": "paper"}, name="ickd paper"),
    Case(affinity, maps((3, 4, 2, 3), (3, 2, 2, 3)), affinity_reference),
]
