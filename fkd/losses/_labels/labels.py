"""Losses against labels: cross-entropy and focal loss, and labels taken from a teacher."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.checks import between, covers, floating
from .._shared.counted import counted_where
from .._shared.labels import check_labels
from .._shared.masks import fill, keep
from .._shared.softmax import cross, softened


def _counted(labels: Tensor, ignore_index: int = -100) -> Tensor:
    return labels != ignore_index


def _counted_rows(labels: Tensor, ignore_index: int = -100) -> Tensor:
    """Of labels that are distributions, `[*batch, vocab]`, every one counts."""
    if labels.is_floating_point():
        return torch.ones_like(labels[..., 0], dtype=torch.bool)
    return _counted(labels, ignore_index)


@counted_where(_counted_rows)
def cross_entropy(
    student_logits: Float[Tensor, "*batch vocab"],
    labels: Int[Tensor, "*batch"] | Float[Tensor, "*batch vocab"],
    *,
    ignore_index: int = -100,
    label_smoothing: float | Tensor = 0.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Cross-entropy of the student with labels, the task loss.

        cross_entropy = -(1 - s) log q_y - s/V sum_v log q_v,   q = softmax(student)
        labels as distributions:  -(1 - s) sum_v y_v log q_v - s/V sum_v log q_v

    with s the label smoothing. Equal to `torch.nn.functional.cross_entropy` with
    reduction="none" and the classes on the last axis. Labels that are probabilities (one-hot,
    mixup, CutMix, votes) are taken as they are, without a softmax; for a teacher's logits there
    is `soft_cross_entropy`.

    Args:
      student_logits: `[*batch, vocab]`. `-inf` means probability 0.
      labels: `[*batch]`, any integer dtype, from 0 to vocab - 1 or `ignore_index`; others are
        an index error of the device. Or `[*batch, vocab]`, floating, probabilities that sum to 1.
      ignore_index: positions with this label yield 0 and no gradient, and `fkd.mean` of a term
        does not count them (see `cross_entropy.counted_where`).
      label_smoothing: 0 <= s < 1. With s > 0 a logit of -inf makes the value inf.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, non-negative, in nats.

    Example:
      >>> cross_entropy(torch.tensor([[0.0, 0.0], [1.0, 9.0]]), torch.tensor([1, -100]))
      tensor([0.6931, 0.0000])

    Reference:
      Szegedy et al., Rethinking the Inception Architecture, arXiv:1512.00567 (smoothing).
    """
    between("cross_entropy", 0, 1, ends="[)", label_smoothing=label_smoothing)
    if labels.is_floating_point():
        log_q, y = _log_q_and_shares("cross_entropy", student_logits, labels, where)
        values, counts = -cross(y, log_q), where
    else:
        log_q, index, counts = _log_q("cross_entropy", student_logits, labels, ignore_index, where)
        values = -log_q.gather(-1, index).squeeze(-1)
    # Without smoothing -inf logits are legal: 0 * -inf is nan, and a pass over them is saved.
    if isinstance(label_smoothing, Tensor) or label_smoothing > 0:
        spread = torch.as_tensor(label_smoothing, device=log_q.device) > 0
        uniform = -torch.where(spread, log_q, 0.0).mean(-1)
        values = (1 - label_smoothing) * values + label_smoothing * uniform
    return keep(values, counts)


@counted_where(_counted)
def focal(
    student_logits: Float[Tensor, "*batch vocab"],
    labels: Int[Tensor, "*batch"],
    *,
    gamma: float | Tensor = 2.0,
    ignore_index: int = -100,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Cross-entropy that leaves out what is easy (focal loss).

        focal = -(1 - q_y)^gamma log q_y,   q = softmax(student)

    Equals `cross_entropy` at gamma = 0. The paper's class weights belong to the term.

    Args:
      student_logits: `[*batch, vocab]`. `-inf` means probability 0.
      labels: `[*batch]`, integers from 0 to vocab - 1 or `ignore_index`.
      gamma: gamma >= 0, how much easy positions are left out.
      ignore_index: positions with this label yield 0 and do not count.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, non-negative, in nats.

    Example:
      >>> focal(torch.tensor([[0.0, 0.0]]), torch.tensor([1]), gamma=1.0)
      tensor([0.3466])

    Reference:
      Lin et al., Focal Loss for Dense Object Detection, arXiv:1708.02002.
    """
    between("focal", 0, math.inf, ends="[)", gamma=gamma)
    log_q, index, counts = _log_q("focal", student_logits, labels, ignore_index, where)
    log_q_y = log_q.gather(-1, index).squeeze(-1)
    # A power below 1 has no derivative at 0; the clamp cuts it off there.
    miss = (-torch.expm1(log_q_y)).clamp(min=torch.finfo(log_q.dtype).tiny ** 0.5)
    return keep(-(miss**gamma) * log_q_y, counts)


def hard_label(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    *,
    label_smoothing: float | Tensor = 0.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Cross-entropy of the student with the teacher's decision.

        hard_label = cross_entropy(student, argmax_v teacher_v)

    Constant in the teacher's logits except where its decision changes: no gradient for it.

    Args:
      student_logits: `[*batch, vocab]`. `-inf` means probability 0.
      teacher_logits: `[*batch, vocab]`.
      label_smoothing: as in `cross_entropy`.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, non-negative, in nats.

    Example:
      >>> hard_label(torch.tensor([[0.0, 0.0]]), torch.tensor([[5.0, 1.0]]))
      tensor([0.6931])

    Reference:
      Touvron et al., Training data-efficient image transformers & distillation through
      attention, arXiv:2012.12877.
    """
    between("hard_label", 0, 1, ends="[)", label_smoothing=label_smoothing)
    pair = {"student_logits": student_logits, "teacher_logits": teacher_logits}
    student, teacher = softened("hard_label", where, **pair)
    labels = teacher.argmax(-1)
    return cross_entropy(student, labels, label_smoothing=label_smoothing, where=where)


def _log_q_and_shares(
    loss: str, student_logits: Tensor, labels: Tensor, where: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Log-probabilities, and labels that are distributions over the same classes."""
    if labels.shape != student_logits.shape:
        raise ValueError(
            f"{loss}: labels {tuple(labels.shape)} have dtype {labels.dtype}; integers of the "
            f"leading shape of student_logits {tuple(student_logits.shape)} are expected, or "
            "probabilities of its whole shape (one-hot, mixup, smoothed). Of class indices in "
            "floating point use labels.long()."
        )
    student_logits, labels = softened(loss, where, student_logits=student_logits, labels=labels)
    return F.log_softmax(student_logits, dim=-1), labels


def _log_q(
    loss: str, student_logits: Tensor, labels: Tensor, ignore_index: int, where: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities, indices `[*batch, 1]` to gather with, and the positions that count."""
    floating(loss, student_logits=student_logits)
    check_labels(loss, student_logits, labels)
    covers(loss, where, labels.shape)
    counts = _counted(labels, ignore_index)
    if where is not None:
        counts = counts & where.bool()
    (student_logits,) = fill(student_logits, where=counts)
    index = torch.where(counts, labels, 0).long().unsqueeze(-1)
    return F.log_softmax(student_logits, dim=-1), index, counts
