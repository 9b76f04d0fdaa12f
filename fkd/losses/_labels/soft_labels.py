"""Label-driven weights and targets: WSLD, and the parts of teacher-free USKD."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..._base.mean import divide
from .._logits.decoupled import decouple
from .._logits.kl import soft_cross_entropy
from .._shared.checks import axes, covers, floating, one_of, positive, same_shape
from .._shared.labels import check_labels, labels_index
from .._shared.masks import fill, keep
from .._shared.softmax import cross, softened
from .labels import cross_entropy


def uskd_target(
    student_logits: Float[Tensor, "*batch vocab"],
    labels: Int[Tensor, "*batch"],
    *,
    soft_label: Float[Tensor, "*batch"],
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Target part of teacher-free USKD: the label's cross-entropy, softened sample by sample.

        uskd_target = -soft_label log q_y,   q = softmax(student)

    The paper's soft label is q_y^2 + 1 - mean(q_y^2), the mean over the batch, held constant
    (see `uskd_soft_label`).

    Args:
      student_logits: `[*batch, vocab]`. `-inf` means probability 0.
      labels: `[*batch]`, integers from 0 to vocab - 1.
      soft_label: `[*batch]`, the weight of the label.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, non-negative for a non-negative soft label, in nats.

    Example:
      >>> uskd_target(torch.zeros(1, 2), torch.tensor([0]), soft_label=torch.tensor([0.5]))
      tensor([0.3466])

    Reference:
      Yang et al., arXiv:2303.13005.
    """
    _labelled("uskd_target", where, student_logits, labels)
    same_shape("uskd_target", soft_label=soft_label, labels=labels)
    values = cross_entropy(student_logits, labels, where=where)
    (soft_label,) = fill(soft_label, where=where)
    return keep(soft_label * values, where)


def uskd_others(
    student_logits: Float[Tensor, "*batch vocab"],
    ranking_logits: Float[Tensor, "*batch vocab"],
    labels: Int[Tensor, "*batch"],
    *,
    convention: str = "paper",
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Part of the other classes in teacher-free USKD: soft labels after Zipf's law.

        uskd_others = -sum_{v != y} z_v log q'_v,   z_v = (1 / rank_v) / sum_{u != y} 1 / rank_u

    with rank 1 for the class of the largest ranking logit other than y, and q' the softmax of
    the student over the classes other than y. Constant in the ranking logits. The authors' code
    ranks all classes, the label too (rank 1 is its, where it leads), before it leaves the label
    out and divides by the sum.

    Args:
      student_logits: `[*batch, vocab]`.
      ranking_logits: `[*batch, vocab]`; in the paper the sum of strong and weak logits.
      labels: `[*batch]`, integers from 0 to vocab - 1.
      convention: "paper" or "code".
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, non-negative, in nats.

    Example:
      >>> uskd_others(torch.zeros(1, 3), torch.zeros(1, 3), torch.tensor([1]))
      tensor([0.6931])

    Reference:
      Yang et al., arXiv:2303.13005.
    """
    one_of("uskd_others", "convention", convention, ("paper", "code"))
    check_labels("uskd_others", student_logits, labels)
    student, ranking = softened(
        "uskd_others", where, student_logits=student_logits, ranking_logits=ranking_logits
    )
    index = labels_index(labels, where)
    if convention == "paper":
        ranking = ranking.scatter(-1, index, torch.inf)  # the label ahead of rank 1
    rank = ranking.argsort(dim=-1, descending=True).argsort(-1).to(student.dtype)
    rank = rank.clamp(min=1) if convention == "paper" else rank + 1
    zipf = (1 / rank).scatter(-1, index, 0.0)
    share = divide(zipf, zipf.sum(-1, keepdim=True))
    return keep(-cross(share, decouple(student, index)[1]), where)


def uskd_soft_label(
    student_logits: Float[Tensor, "batch vocab"],
    labels: Int[Tensor, " batch"],
    *,
    where: Bool[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """Soft label of the labelled class in USKD, from the student's own probabilities.

        soft_label = q_y^2 + 1 - mean_b(q_y^2),   q = softmax(student)

    Relational: the mean is over the samples that count.

    Args:
      student_logits: `[batch, vocab]`. `-inf` means probability 0.
      labels: `[batch]`, integers from 0 to vocab - 1.
      where: `[batch]`, True where a sample counts. Others yield 0 and take no part.

    Returns:
      `[batch]`, from 0 to 2, with mean 1.

    Example:
      >>> uskd_soft_label(torch.zeros(2, 2), torch.tensor([0, 1]))
      tensor([1., 1.])

    Reference:
      Yang et al., arXiv:2303.13005.
    """
    _labelled("uskd_soft_label", where, student_logits, labels)
    axes("uskd_soft_label", "batch vocab", student_logits=student_logits)
    squares = torch.exp(-2 * cross_entropy(student_logits, labels, where=where))
    if where is None:
        return squares + 1 - squares.mean()
    squares = keep(squares, where)
    return keep(squares + 1 - squares.sum() / where.bool().sum().clamp(min=1), where)


def wsld(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    labels: Int[Tensor, "*batch"],
    *,
    weight: Float[Tensor, "*batch"] | None = None,
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Soft cross-entropy, weighted by how far the student is behind the teacher (WSLD).

        wsld = w T^2 (-sum_v p_v log q_v),   w = 1 - exp(-CE(student, y) / CE(teacher, y))
        p = softmax(teacher / T),  q = softmax(student / T);  the two CE at temperature 1

    Args:
      student_logits: `[*batch, vocab]`. `-inf` means probability 0.
      teacher_logits: `[*batch, vocab]`.
      labels: `[*batch]`, integers from 0 to vocab - 1; anything where `where` is False.
      weight: `[*batch]`, w; if None that of `wsld_weight` of the same arguments, held constant, as
        published. Pass `wsld_weight(...)` to have gradients flow through w too: they are of no
        use near convergence.
      temperature: T > 0, a number or a tensor `[*batch, 1]`, one T a position.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, non-negative, in nats.

    Example:
      >>> wsld(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([1]))
      tensor([0.4382])

    Reference:
      Zhou et al., Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff
      Perspective, arXiv:2102.00650.
    """
    positive("wsld", temperature=temperature)
    _labelled("wsld", where, student_logits, labels, teacher_logits)
    if weight is None:
        weight = wsld_weight(student_logits, teacher_logits, labels, where=where).detach()
    same_shape("wsld", weight=weight, labels=labels)
    (weight,) = fill(weight, where=where)
    return weight * soft_cross_entropy(
        student_logits, teacher_logits, temperature=temperature, where=where
    )


def wsld_weight(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    labels: Int[Tensor, "*batch"],
    *,
    eps: float = 1e-7,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Weight of a sample in `wsld`.

        w = 1 - exp(-CE(student, y) / (CE(teacher, y) + eps))

    Args:
      student_logits: `[*batch, vocab]`. `-inf` means probability 0.
      teacher_logits: `[*batch, vocab]`.
      labels: `[*batch]`, integers from 0 to vocab - 1; anything where `where` is False.
      eps: added to the teacher's cross-entropy, which may be 0.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, from 0 to 1.

    Example:
      >>> wsld_weight(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([1]))
      tensor([0.6321])

    Reference:
      Zhou et al., arXiv:2102.00650.
    """
    _labelled("wsld_weight", where, student_logits, labels, teacher_logits)
    student = cross_entropy(student_logits, labels, where=where)
    teacher = cross_entropy(teacher_logits, labels, where=where)
    return keep(-torch.expm1(-student / (teacher + eps)), where)


def _labelled(
    loss: str,
    where: Tensor | None,
    student_logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor | None = None,
) -> None:
    """Refuse what the losses called from here would refuse by their own names."""
    floating(loss, student_logits=student_logits)
    check_labels(loss, student_logits, labels)
    covers(loss, where, labels.shape)
    if teacher_logits is not None:
        floating(loss, teacher_logits=teacher_logits)
        same_shape(loss, student_logits=student_logits, teacher_logits=teacher_logits)
