"""Loss between the leading singular vectors of feature maps."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .._shared.checks import whole
from .._shared.geometry import root, unit
from .._shared.products import product
from .gram import two_layers
from .places import Where, placed


def kdsvd(
    student_first: Float[Tensor, "batch first *student_first_space"],
    teacher_first: Float[Tensor, "batch first *teacher_first_space"],
    student_second: Float[Tensor, "batch second *student_second_space"],
    teacher_second: Float[Tensor, "batch second *teacher_second_space"],
    *,
    rank: int = 1,
    extra: int = 3,
    where: Where | None = None,
) -> Float[Tensor, " batch"]:
    """Distance of the relations between the leading singular vectors of two layers.

        F = U S V^T,   F = map as `[places, channels]`,   V = its leading right vectors
        w_k = v_k * S_k / |S|, S of the teacher, for the second and the first layer
        R_cdk = exp(-(second_ck - first_dk)^2 / 8)
        kdsvd = sum_cdk (Rs_cdk - Rt_cdk)^2

    `rank` vectors of the teacher; each meets, of `rank + extra` vectors of the student, the one
    with the largest absolute cosine, with its sign. Public versions differ: this is the one
    with vectors over the channels. A teacher's vector has its largest entry positive (the
    versions leave the sign to the decomposition, though the loss depends on it).

    The gradient of a singular vector has the factor 1 / (S_i^2 - S_j^2); a gap g is replaced by
    g + (1e-6 S_1^2)^2 / g, so that equal singular values give a finite gradient. Values are
    exact; the second derivative has such factors, too.

    Args:
      student_first: `[batch, first, *space]`, the student's map of an early layer.
      teacher_first: `[batch, first, *space]`.
      student_second: `[batch, second, *space]`, the student's map of a later layer.
      teacher_second: `[batch, second, *space]`.
      rank: how many singular vectors of the teacher, 1 or more.
      extra: how many more of the student, 0 or more.
      where: `[batch]`, True where a sample counts, or where all maps have one space,
        `[batch, *space]`, where a place does. Others yield 0 and no gradient.

    Returns:
      `[batch]`, non-negative.

    Example:
      >>> a, b = torch.eye(2)[None, :, :1], torch.eye(3)[None, :, 1:2]
      >>> kdsvd(a, 2 * a, b, -3 * b)
      tensor([0.])

    Reference:
      Lee et al., Self-supervised Knowledge Distillation using Singular Value Decomposition,
      arXiv:1807.06819.
    """
    whole("kdsvd", 1, rank=rank)
    whole("kdsvd", 0, extra=extra)
    (s1, t1), (s2, t2) = two_layers(
        "kdsvd",
        {"student_first": student_first, "teacher_first": teacher_first},
        {"student_second": student_second, "teacher_second": teacher_second},
    )
    (s1, t1, s2, t2), places = placed(
        "kdsvd", where, student_first=s1, teacher_first=t1, student_second=s2, teacher_second=t2
    )
    ws_first, wt_first = _aligned(s1, t1, rank, extra)
    ws_second, wt_second = _aligned(s2, t2, rank, extra)
    difference = _between(ws_second, ws_first) - _between(wt_second, wt_first)
    return places.keep(difference.square().sum((1, 2, 3)))


def _between(second: Tensor, first: Tensor) -> Tensor:
    return torch.exp(-(second[:, :, None] - first[:, None]).square() / 8)


def _aligned(student: Tensor, teacher: Tensor, rank: int, extra: int) -> tuple[Tensor, Tensor]:
    """Weighted vectors `[batch, channels, rank]`, the student's in the teacher's order."""
    vs, _ = _leading(student, rank + extra)
    vt, values = _leading(teacher, rank)
    largest = vt.abs().argmax(1, keepdim=True)
    vt = vt * vt.gather(1, largest).sign()
    cosine = product(vs.mT, vt)  # [batch, student vectors, teacher vectors]
    best = cosine.abs().argmax(1, keepdim=True)
    vs = vs.gather(2, best.expand(-1, vs.shape[1], -1)) * cosine.gather(1, best).sign()
    weight = unit(values)[:, None]
    return vs * weight, vt * weight


def _leading(flat: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Right singular vectors `[batch, channels, n]` and singular values `[batch, n]`."""
    g = product(flat, flat.mT)
    g0 = g.detach()
    values, v = torch.linalg.eigh(g0)
    values, v = values.flip(-1), v.flip(-1)
    n = min(count, values.shape[-1])
    # Second-order perturbation around g0: the value is v, the derivatives, of the first order and
    # of the second, are those of an eigenvector.
    gap = values[..., None, :n] - values[..., :, None]
    width = (1e-6 * values[..., :1, None]).square().clamp(min=1e-30)
    inverse = gap / (gap.square() + width)
    every = product(product(v.mT, g - g0), v)  # in the basis of v; 0, with a derivative
    change = every[..., :n]
    diagonal = change.diagonal(dim1=-2, dim2=-1)
    first = change * inverse
    second = inverse * (product(every, first) - first * diagonal.unsqueeze(-2))
    length = 1 - 0.5 * first.square().sum(-2, keepdim=True)
    vectors = v[..., :n] * length + product(v, first + second)
    squares = values[..., :n].clamp(min=0.0) + diagonal + (change * first).sum(-2)
    return vectors, root(squares)
