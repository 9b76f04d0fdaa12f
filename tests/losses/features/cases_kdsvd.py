"""Row of the singular vectors. The reference takes them from NumPy's SVD."""

from __future__ import annotations

import numpy as np

from fkd.losses import kdsvd

from ..case import Case
from .cases_maps import maps


def aligned(s, t, rank, extra):
    """Weighted vectors of one sample, `[channels, rank]`."""
    _, _, vs = np.linalg.svd(s.reshape(len(s), -1).T, full_matrices=False)
    _, values, vt = np.linalg.svd(t.reshape(len(t), -1).T, full_matrices=False)
    vs, vt, values = vs[: rank + extra], vt[:rank], values[:rank]
    out_s, out_t = [], []
    for v, weight in zip(vt, values / np.linalg.norm(values), strict=True):
        v = v * np.sign(v[np.abs(v).argmax()])
        best = max(vs, key=lambda u: abs(u @ v))
        out_s.append(weight * best * np.sign(best @ v))
        out_t.append(weight * v)
    return np.stack(out_s, -1), np.stack(out_t, -1)


def kdsvd_reference(s1, t1, s2, t2, *, rank=1, extra=3):
    out = np.zeros(len(s1))
    for b in range(len(s1)):
        firsts = aligned(s1[b], t1[b], rank, extra)
        seconds = aligned(s2[b], t2[b], rank, extra)
        rbf = [
            np.exp(-((y[:, None] - x[None]) ** 2) / 8) for x, y in zip(firsts, seconds, strict=True)
        ]
        out[b] = ((rbf[0] - rbf[1]) ** 2).sum()
    return out


def row(rank, extra, name):
    return Case(
        kdsvd,
        maps((3, 4, 3, 3), (3, 4, 2, 4), (3, 5, 8), (3, 5, 9)),
        kdsvd_reference,
        kwargs={"rank": rank, "extra": extra},
        zero_at_equality=False,
        half_rtol=1e-3,
        rtol=1e-7,
        note="four inputs",
        name=name,
    )


CASES = [row(1, 3, "kdsvd"), row(2, 1, "kdsvd rank 2")]
