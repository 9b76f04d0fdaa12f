"""Rows of the losses between feature maps."""

from __future__ import annotations

import numpy as np
from scipy.special import rel_entr, softmax

from fkd.losses import attention_transfer, cat_kd, cwd, hcl, pearson

from ..case import Case, normal, pair


def maps(*shapes):
    makers = [normal(*shape) for shape in shapes]
    return lambda g: tuple(make(g) for make in makers)


def flat(x):
    return x.reshape(*x.shape[:2], -1)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def pool(x, size):
    """Average over equal blocks of the two axes of space."""
    b, c, h, w = x.shape
    return x.reshape(b, c, size[0], h // size[0], size[1], w // size[1]).mean((3, 5))


def at_reference(s, t, *, convention="paper", pool=False):
    if pool:
        s = globals()["pool"](s, t.shape[2:])
    d = unit((flat(s) ** 2).sum(1)) - unit((flat(t) ** 2).sum(1))
    return np.linalg.norm(d, axis=-1) if convention == "paper" else (d**2).mean(-1)


def cwd_reference(s, t, *, temperature=1.0):
    p, q = softmax(flat(t) / temperature, -1), softmax(flat(s) / temperature, -1)
    return temperature**2 * rel_entr(p, q).sum(-1).mean(-1)


def cat_reference(s, t, *, size=2):
    if size is not None:
        s, t = pool(s, (size, size)), pool(t, (size, size))
    return ((unit(flat(s)) - unit(flat(t))) ** 2).sum(-1).mean(-1)


def hcl_reference(s, t, *, levels=(4, 2, 1)):
    total, weights, w = ((s - t) ** 2).mean((1, 2, 3)), 1.0, 1.0
    for level in levels:
        if level < s.shape[2]:
            w /= 2
            d = pool(s, (level, level)) - pool(t, (level, level))
            total, weights = total + w * (d**2).mean((1, 2, 3)), weights + w
    return total / weights


def pearson_reference(s, t):
    axes = (0, *range(2, s.ndim))
    s, t = ((x - x.mean(axes, keepdims=True)) / x.std(axes, keepdims=True) for x in (s, t))
    return ((s - t) ** 2).mean(tuple(range(1, s.ndim))) / 2


CASES = [
    Case(attention_transfer, maps((3, 4, 2, 5), (3, 6, 2, 5)), at_reference),
    Case(attention_transfer, pair(3, 4, 5), at_reference, name="attention_transfer one axis"),
    Case(
        attention_transfer,
        pair(3, 4, 2, 3),
        at_reference,
        kwargs={"convention": "code"},
        name="attention_transfer code",
    ),
    Case(
        attention_transfer,
        maps((3, 4, 4, 6), (3, 2, 2, 3)),
        at_reference,
        kwargs={"convention": "code", "pool": True},
        name="attention_transfer pooled",
    ),
    Case(cwd, pair(3, 2, 4, 3), cwd_reference),
    Case(cwd, pair(3, 2, 7), cwd_reference, kwargs={"temperature": 4.0}, name="cwd T 4"),
    Case(cat_kd, pair(3, 2, 4, 4), cat_reference),
    Case(cat_kd, pair(3, 2, 3, 4), cat_reference, kwargs={"size": None}, name="cat_kd unpooled"),
    Case(hcl, pair(3, 2, 8, 8), hcl_reference),
    Case(hcl, pair(3, 2, 2, 2), hcl_reference, name="hcl small map"),
    Case(pearson, pair(4, 3, 2, 3), pearson_reference, relational=True, rtol=1e-5),
]
