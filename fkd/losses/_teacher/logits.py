"""Transforms of a teacher's logits, to be put between the teacher and a loss.

Each returns logits: `softmax` of what comes out is the new distribution of the teacher.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from .._shared.checks import between, classes_last, floating, one_of
from .._shared.labels import check_labels
from .._shared.masks import upcast


def standardize(
    logits: Float[Tensor, "*batch vocab"], *, eps: float = 1e-7
) -> Float[Tensor, "*batch vocab"]:
    """Logits with mean 0 and standard deviation 1 over the classes.

        standardize = (z - mean_v z) / (std_v z + eps),   std with V - 1

    Apply it to both models and soften afterwards. Classes with `-inf` stay, and do not enter
    the mean or the deviation. Equal logits become 0.

    Args:
      logits: `[*batch, vocab]`.
      eps: added to the standard deviation.

    Returns:
      `[*batch, vocab]`.

    Example:
      >>> standardize(torch.tensor([[1.0, 2.0, 3.0]]))
      tensor([[-1.0000,  0.0000,  1.0000]])

    Reference:
      Sun et al., Logit Standardization in Knowledge Distillation, arXiv:2403.01427.
    """
    floating("standardize", logits=logits)
    classes_last("standardize", None, logits=logits)
    excluded = logits.isneginf()
    z = upcast(logits).masked_fill(excluded, 0.0)
    count = (~excluded).sum(-1, keepdim=True)
    centred = (z - z.sum(-1, keepdim=True) / count.clamp(min=1)).masked_fill(excluded, 0.0)
    variance = centred.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)
    positive = variance > 0
    std = torch.where(positive, torch.where(positive, variance, 1.0).sqrt(), 0.0)
    return (centred / (std + eps)).masked_fill(excluded, -torch.inf)


def corrected_teacher(
    teacher_logits: Float[Tensor, "*batch vocab"],
    labels: Int[Tensor, "*batch"],
    *,
    threshold: float | Tensor = 0.0,
    always: bool = False,
    convention: str = "paper",
) -> Float[Tensor, "*batch vocab"]:
    """Mix the label into a wrong teacher until the label leads by a threshold (MFT).

        p' = (1 - k) p + k onehot(y),   k = (r - p_y + threshold) / (1 + r - p_y)

    with r the largest probability of a class other than y. A teacher is wrong if r > p_y. To
    correct a softened teacher, pass teacher_logits / T, and T = 1 to the loss. NVIDIA's
    Model-Optimizer (`MFTLoss`) corrects all teachers, `always=True, convention="code"`: it adds the
    threshold to p_y wherever the teacher is right, up to 1.

    Args:
      teacher_logits: `[*batch, vocab]`. `-inf` means probability 0.
      labels: `[*batch]`, integers from 0 to vocab - 1; a position with a negative label is left
        as it is.
      threshold: 0 <= threshold < 1, by how much p'_y exceeds every other p'.
      always: also correct a teacher that is right: in the paper's convention one that is right
        by less than the threshold, in the code's every one.
      convention: "paper" or "code", of a teacher that is right.

    Returns:
      `[*batch, vocab]`, log p'.

    Example:
      >>> corrected_teacher(torch.tensor([[0.6, 0.4]]).log(), torch.tensor([1])).exp()
      tensor([[0.5000, 0.5000]])

    Reference:
      Belcak et al., Minifinetuning: Low-Data Generation Domain Adaptation through Corrective
      Self-Distillation, arXiv:2506.15702.
    """
    between("corrected_teacher", 0, 1, ends="[)", threshold=threshold)
    one_of("corrected_teacher", "convention", convention, ("paper", "code"))
    is_label, index, known = _labelled("corrected_teacher", teacher_logits, labels)
    log_p = F.log_softmax(upcast(teacher_logits), dim=-1)
    p_y = log_p.gather(-1, index).exp()
    lead = log_p.masked_fill(is_label, -torch.inf).amax(-1, keepdim=True).exp() - p_y
    wrong = (lead + threshold if always and convention == "paper" else lead) > 0
    lead = torch.where(wrong & known, lead, 0.0)  # -1 of a certain teacher, and 1 + lead is 0
    k = torch.where(wrong, (lead + threshold) / (1 + lead), 0.0)
    if always and convention == "code":
        room = 1 - p_y
        more = torch.where(room > threshold, threshold / torch.where(room > 0, room, 1.0), 1.0)
        k = torch.where(wrong, k, more)
    k = torch.where(known, k, 0.0)
    mixed = is_label & (k > 0)
    # Both logarithms end where nothing is mixed in, or nothing else is left: no 0 * inf backwards.
    label = torch.where(mixed, (1 - k) * p_y + k, 1.0).log()
    others = torch.where(k < 1, torch.log1p(-torch.where(k < 1, k, 0.0)), -torch.inf)
    return torch.where(mixed, label, log_p + others)


def probability_shift(
    teacher_logits: Float[Tensor, "*batch vocab"], labels: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch vocab"]:
    """Exchange the logits of the label and of the teacher's decision, so that it is right.

        z'_y = z_m,  z'_m = z_y,  z'_v = z_v otherwise,   m = argmax_v z_v

    Args:
      teacher_logits: `[*batch, vocab]`.
      labels: `[*batch]`, integers from 0 to vocab - 1; a position with a negative label is left
        as it is.

    Returns:
      `[*batch, vocab]`, the same values in another order.

    Example:
      >>> probability_shift(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([2]))
      tensor([[1., 2., 3.]])

    Reference:
      Wen et al., Preparing Lessons: Improve Knowledge Distillation with Better Supervision,
      arXiv:1911.07471.
    """
    is_label, index, known = _labelled("probability_shift", teacher_logits, labels)
    z = upcast(teacher_logits)
    top, decision = z.max(dim=-1, keepdim=True)
    shifted = z.scatter(-1, decision, z.gather(-1, index))
    return torch.where(known, torch.where(is_label, top, shifted), z)


def virtual_teacher(
    labels: Int[Tensor, "*batch"],
    num_classes: int,
    *,
    correct: float | Tensor = 0.9,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "*batch vocab"]:
    """Teacher made from the labels alone (teacher-free distillation, label smoothing).

        p_y = correct,   p_v = (1 - correct) / (num_classes - 1) for v != y

    Label smoothing s is correct = 1 - s + s / num_classes.

    Args:
      labels: `[*batch]`, integers from 0 to num_classes - 1; a negative label gives the uniform
        distribution.
      num_classes: 2 or more.
      correct: 0 < correct < 1, the probability of the label.
      dtype: of the logits.

    Returns:
      `[*batch, num_classes]`, log p.

    Example:
      >>> virtual_teacher(torch.tensor([1]), 3, correct=0.9).exp()
      tensor([[0.0500, 0.9000, 0.0500]])

    Reference:
      Yuan et al., Revisiting Knowledge Distillation via Label Smoothing Regularization,
      arXiv:1909.11723.
    """
    if num_classes < 2:
        raise ValueError(f"virtual_teacher: num_classes is {num_classes}; 2 or more are expected.")
    between("virtual_teacher", 0, 1, ends="()", correct=correct)
    correct = torch.as_tensor(correct, dtype=dtype, device=labels.device)
    classes = torch.arange(num_classes, device=labels.device)
    label, other = correct.log(), torch.log1p(-correct) - math.log(num_classes - 1)
    log_p = torch.where(classes == labels[..., None], label, other)
    return torch.where(labels[..., None] >= 0, log_p, -math.log(num_classes))


def replace_wrong(
    teacher_logits: Float[Tensor, "*batch vocab"],
    labels: Int[Tensor, "*batch"],
    *,
    correct: float | Tensor = 0.9,
) -> Float[Tensor, "*batch vocab"]:
    """Replace the teacher by a `virtual_teacher` wherever it is wrong.

        z' = z if argmax_v z_v = y, else virtual_teacher(y)

    Args:
      teacher_logits: `[*batch, vocab]`, 2 classes or more.
      labels: `[*batch]`, integers from 0 to vocab - 1; a position with a negative label is left
        as it is.
      correct: 0 < correct < 1, the probability of the label in the virtual teacher.

    Returns:
      `[*batch, vocab]`.

    Example:
      >>> replace_wrong(torch.tensor([[4.0, 0.0]]), torch.tensor([1])).exp()
      tensor([[0.1000, 0.9000]])

    Reference:
      Wen et al., arXiv:1911.07471.
    """
    between("replace_wrong", 0, 1, ends="()", correct=correct)
    _, index, known = _labelled("replace_wrong", teacher_logits, labels)
    z = upcast(teacher_logits)
    right = z.argmax(-1, keepdim=True) == index
    virtual = virtual_teacher(labels, z.shape[-1], correct=correct, dtype=z.dtype)
    return torch.where(right | ~known, z, virtual)


def _labelled(loss: str, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One-hot labels as bool, indices `[*batch, 1]`, and which positions have a label."""
    floating(loss, teacher_logits=logits)
    check_labels(loss, logits, labels, name="teacher_logits")
    known = labels.unsqueeze(-1) >= 0
    index = torch.where(known, labels.unsqueeze(-1), 0).long()
    return torch.arange(logits.shape[-1], device=logits.device) == index, index, known
