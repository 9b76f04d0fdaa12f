"""Losses that read the teacher's features as samples of a density around the student's.

Also two further distances of features: in logarithm, and of gradients.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.checks import between, one_of, paired, positive
from .._shared.geometry import unit
from .._shared.masks import fill, keep, upcast
from .places import Where, equal_features, equal_maps


def vid(
    student_mean: Float[Tensor, "batch channels *space"],
    teacher_map: Float[Tensor, "batch channels *space"],
    *,
    log_scale: Float[Tensor, " channels"],
    where: Where | None = None,
) -> Float[Tensor, " batch"]:
    """Variational information distillation: Gaussian likelihood, one variance for a channel.

        vid = mean over c and places of (mu - t)^2 / (2 sigma_c^2) + log sigma_c

    Minus the log-likelihood of the teacher for each feature, without the constant
    log(2 pi) / 2. With v the variance, log_scale is log(v) / 2.

    Args:
      student_mean: `[batch, channels, *space]`, mu: the student's map through a regressor.
      teacher_map: `[batch, channels, *space]`, t.
      log_scale: `[channels]`, log sigma, a parameter. It receives a gradient.
      where: `[batch]`, True where a sample counts, or `[batch, *space]`, where a place does.
        Others yield 0 and no gradient.

    Returns:
      `[batch]`, of any sign (a density may exceed 1).

    Example:
      >>> vid(torch.zeros(1, 2, 3), 2 * torch.ones(1, 2, 3), log_scale=torch.zeros(2))
      tensor([2.])

    Reference:
      Ahn et al., Variational Information Distillation for Knowledge Transfer,
      arXiv:1904.05835.
    """
    (mean, teacher), places = equal_maps(
        "vid", where, student_mean=student_mean, teacher_map=teacher_map
    )
    if log_scale.shape != mean.shape[1:2]:
        raise ValueError(
            f"vid: log_scale has shape {tuple(log_scale.shape)}; one number for each of the "
            f"channels of student_mean {tuple(student_mean.shape)} is expected."
        )
    log_sigma = upcast(log_scale)
    error = places.mean((mean - teacher).square())
    return places.keep((0.5 * error * torch.exp(-2 * log_sigma) + log_sigma).mean(-1))


def pad(
    student_hidden: Float[Tensor, "*batch hidden"],
    teacher_hidden: Float[Tensor, "*batch hidden"],
    *,
    log_variance: Float[Tensor, "*batch hidden"],
    eps: float = 1e-6,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Prime-aware distillation: squared error discounted by a learned uncertainty.

        pad = 1/D * sum_d (s_d - t_d)^2 / (exp(lv_d) + eps) + lv_d

    Args:
      student_hidden: `[*batch, hidden]`, D = hidden.
      teacher_hidden: `[*batch, hidden]`.
      log_variance: `[*batch, hidden]`, lv, predicted from the student. It receives a gradient.
      eps: keeps the division finite when the variance vanishes.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, of any sign.

    Example:
      >>> pad(torch.zeros(1, 3), 2 * torch.ones(1, 3), log_variance=torch.zeros(1, 3))
      tensor([4.0000])

    Reference:
      Zhang et al., Prime-Aware Adaptive Distillation, arXiv:2008.01458.
    """
    student, teacher = paired(
        "pad", where, student_hidden=student_hidden, teacher_hidden=teacher_hidden
    )
    if log_variance.shape != student.shape:
        raise ValueError(
            f"pad: log_variance has shape {tuple(log_variance.shape)}; the shape of the hidden "
            f"states {tuple(student.shape)} is expected."
        )
    (log_v,) = fill(log_variance, where=where)
    return keep(((student - teacher).square() / (log_v.exp() + eps) + log_v).mean(-1), where)


def log_distance(
    student_hidden: Float[Tensor, "*batch hidden"],
    teacher_hidden: Float[Tensor, "*batch hidden"],
    *,
    exponent: float | Tensor = 4.0,
    eps: float = 1e-12,
    over: Literal["position", "batch"] = "position",
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"] | Float[Tensor, ""]:
    """Logarithm of a power distance: a soft maximum of the differences.

        position: log_distance = log(eps + sum_d |s_d - t_d|^exponent)
        batch:    one logarithm of the sum over all positions that count

    The paper applies batch normalisation to both sides first. eps keeps the value finite where
    student and teacher agree: there it is log(eps) and the gradient is 0. The authors' code
    takes one logarithm of the whole batch ("batch"): far positions weigh more there, and the
    value has no mean over positions, nor over microbatches.

    Args:
      student_hidden: `[*batch, hidden]`, mapped to the teacher's width.
      teacher_hidden: `[*batch, hidden]`.
      exponent: > 1.
      eps: > 0.
      over: "position" for one value a position, "batch" for one value of all.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, or `[]` for "batch" (0 if nothing counts); at least log(eps), smallest at
      equality.

    Example:
      >>> log_distance(torch.zeros(1, 2), torch.ones(1, 2))
      tensor([0.6931])

    Reference:
      Miles and Mikolajczyk, Understanding the Role of the Projector in Knowledge
      Distillation, arXiv:2303.11098.
    """
    between("log_distance", 1, math.inf, ends="()", exponent=exponent)
    positive("log_distance", eps=eps)
    one_of("log_distance", "over", over, ("position", "batch"))
    student, teacher = paired(
        "log_distance", where, student_hidden=student_hidden, teacher_hidden=teacher_hidden
    )
    difference = (student - teacher).abs()
    power = torch.where(difference > 0, difference, 1.0) ** exponent
    sums = torch.where(difference > 0, power, 0.0).sum(-1)
    if over == "position":
        return keep((eps + sums).log(), where)
    some = difference.new_tensor(sums.numel() > 0) if where is None else where.any()
    return torch.where(some.bool(), (eps + sums.sum()).log(), 0.0)


def jacobian_matching(
    student_gradient: Float[Tensor, "batch ..."],
    teacher_gradient: Float[Tensor, "batch ..."],
    *,
    normalize: bool = True,
    where: Where | None = None,
) -> Float[Tensor, " batch"]:
    """Squared distance of gradients with respect to the input (Sobolev training).

        jacobian_matching = |n(g_s) - n(g_t)|^2,   g = d output / d input of a sample

    The gradients are given, for example by `torch.func.grad`; training through them needs a
    second derivative of the student. Sobolev training uses `normalize=False`, Jacobian
    matching normalised gradients (n divides by the Euclidean length).

    Args:
      student_gradient: `[batch, ...]`, flattened.
      teacher_gradient: `[batch, ...]`.
      normalize: whether both are first divided by their Euclidean length.
      where: `[batch]`, True where a sample counts, or `[batch, *space]`, where a place does.
        Others yield 0 and no gradient.

    Returns:
      `[batch]`, non-negative; normalised: in [0, 4].

    Example:
      >>> jacobian_matching(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
      tensor([2.])

    Reference:
      Srinivas and Fleuret, Knowledge Transfer with Jacobian Matching, arXiv:1803.00443;
      Czarnecki et al., Sobolev Training for Neural Networks, arXiv:1706.04859.
    """
    (student, teacher), places = equal_features(
        "jacobian_matching",
        where,
        student_gradient=student_gradient,
        teacher_gradient=teacher_gradient,
    )
    student, teacher = student.flatten(1), teacher.flatten(1)
    if normalize:
        student, teacher = unit(student), unit(teacher)
    return places.keep((student - teacher).square().sum(-1))
