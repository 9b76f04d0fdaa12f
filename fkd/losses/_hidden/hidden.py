"""Losses between hidden states. The last axis holds the features, all others are positions.

Student and teacher must have the same shape. Where the widths differ, put a learnable map in
front of the student: `mse(project(student_hidden), teacher_hidden)`. With such a map `mse` is
the hint loss of FitNets (Romero et al., arXiv:1412.6550), the hidden-state loss of TinyBERT
(Jiao et al., arXiv:1909.10351) and the feature loss of SimKD (Chen et al., arXiv:2203.14001).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.checks import paired, positive
from .._shared.geometry import huber, norm, unit
from .._shared.masks import keep


def mse(
    student_hidden: Float[Tensor, "*batch hidden"],
    teacher_hidden: Float[Tensor, "*batch hidden"],
    *,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Mean squared error between hidden states.

        mse = 1/D * sum_d (s_d - t_d)^2

    Args:
      student_hidden: `[*batch, hidden]`, D = hidden.
      teacher_hidden: `[*batch, hidden]`.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, non-negative.

    Example:
      >>> mse(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]]))
      tensor([2.])

    Reference:
      Romero et al., FitNets: Hints for Thin Deep Nets, arXiv:1412.6550.
    """
    student, teacher = paired(
        "mse", where, student_hidden=student_hidden, teacher_hidden=teacher_hidden
    )
    return keep((student - teacher).square().mean(-1), where)


def l1(
    student_hidden: Float[Tensor, "*batch hidden"],
    teacher_hidden: Float[Tensor, "*batch hidden"],
    *,
    normalize: bool = False,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Mean absolute error between hidden states.

        l1 = 1/D * sum_d |s_d - t_d|

    Args:
      student_hidden: `[*batch, hidden]`, D = hidden.
      teacher_hidden: `[*batch, hidden]`.
      normalize: whether both vectors are first divided by their Euclidean length.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, non-negative.

    Example:
      >>> l1(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]]))
      tensor([1.])

    Reference:
      Kim et al., Paraphrasing Complex Network: Network Compression via Factor Transfer,
      arXiv:1802.04977 (with `normalize=True`, between factors).
    """
    student, teacher = paired(
        "l1", where, student_hidden=student_hidden, teacher_hidden=teacher_hidden
    )
    if normalize:
        student, teacher = unit(student), unit(teacher)
    return keep((student - teacher).abs().mean(-1), where)


def l2(
    student_hidden: Float[Tensor, "*batch hidden"],
    teacher_hidden: Float[Tensor, "*batch hidden"],
    *,
    normalize: bool = False,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Euclidean distance between hidden states (the root, not its square).

        l2 = sqrt(sum_d (s_d - t_d)^2)

    Args:
      student_hidden: `[*batch, hidden]`.
      teacher_hidden: `[*batch, hidden]`.
      normalize: whether both vectors are first divided by their Euclidean length.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, non-negative. The gradient at equality is 0.

    Example:
      >>> l2(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
      tensor([5.])

    Reference:
      Zhang and Ma, Improve Object Detection with Feature-based Knowledge Distillation,
      ICLR 2021.
    """
    student, teacher = paired(
        "l2", where, student_hidden=student_hidden, teacher_hidden=teacher_hidden
    )
    if normalize:
        student, teacher = unit(student), unit(teacher)
    return keep(norm(student - teacher), where)


def smooth_l1(
    student_hidden: Float[Tensor, "*batch hidden"],
    teacher_hidden: Float[Tensor, "*batch hidden"],
    *,
    beta: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Smooth L1 distance: quadratic for small differences, linear for large ones.

        smooth_l1 = 1/D * sum_d h(s_d - t_d)
        h(x) = x^2 / (2 beta) if |x| < beta else |x| - beta / 2

    Args:
      student_hidden: `[*batch, hidden]`, D = hidden.
      teacher_hidden: `[*batch, hidden]`.
      beta: > 0, the difference at which the two branches meet.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, non-negative.

    Example:
      >>> smooth_l1(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 3.0]]))
      tensor([1.5000])

    Reference:
      Girshick, Fast R-CNN, arXiv:1504.08083; as a distillation loss: Miles et al., VkD,
      arXiv:2403.06213.
    """
    positive("smooth_l1", beta=beta)
    student, teacher = paired(
        "smooth_l1", where, student_hidden=student_hidden, teacher_hidden=teacher_hidden
    )
    return keep(huber(student, teacher, beta).mean(-1), where)


def cosine(
    student_hidden: Float[Tensor, "*batch hidden"],
    teacher_hidden: Float[Tensor, "*batch hidden"],
    *,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Cosine distance between hidden states.

        cosine = 1 - s.t / (|s| |t|)

    Computed as |s/|s| - t/|t||^2 / 2, which is never negative and exact near equality. A zero
    vector has no direction: its cosine with anything is taken as 0 (so the value is 1).

    Args:
      student_hidden: `[*batch, hidden]`.
      teacher_hidden: `[*batch, hidden]`.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, in [0, 2]; 0 iff the vectors point the same way.

    Example:
      >>> from fkd.losses import cosine  # not the schedule of the same name
      >>> cosine(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]]))
      tensor([1.])

    Reference:
      Sanh et al., DistilBERT, arXiv:1910.01108.
    """
    student, teacher = paired(
        "cosine", where, student_hidden=student_hidden, teacher_hidden=teacher_hidden
    )
    directed = (norm(student) > 0) & (norm(teacher) > 0)
    distance = 0.5 * (unit(student) - unit(teacher)).square().sum(-1)
    return keep(torch.where(directed, distance, 1.0), where)


def pkd(
    student_hidden: Float[Tensor, "*batch hidden"],
    teacher_hidden: Float[Tensor, "*batch hidden"],
    *,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Squared distance of length-normalised hidden states (Patient Knowledge Distillation).

        pkd = |s/|s| - t/|t||^2

    The paper applies it to the [CLS] position of chosen layers: `hidden[:, 0]`. The authors'
    code takes the mean over the hidden size, to which the published weights (10 to 1000) belong:
    divide them by the hidden size here. It is twice `cosine`, except that a zero vector is left
    as it is.

    Args:
      student_hidden: `[*batch, hidden]`.
      teacher_hidden: `[*batch, hidden]`.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, in [0, 4].

    Example:
      >>> pkd(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]]))
      tensor([2.])

    Reference:
      Sun et al., Patient Knowledge Distillation for BERT Model Compression, arXiv:1908.09355.
    """
    student, teacher = paired(
        "pkd", where, student_hidden=student_hidden, teacher_hidden=teacher_hidden
    )
    return keep((unit(student) - unit(teacher)).square().sum(-1), where)
