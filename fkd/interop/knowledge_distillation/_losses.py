"""The named losses of a config, on fkd's own, and functions of the user as losses.

All take the student first, as everywhere in fkd. `mask` is the teacher's attention mask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor

import fkd.losses
from fkd._base.mean import Mean, mean
from fkd._refs.paths import name_of

UserLoss: TypeAlias = Callable[..., Tensor]
"""`loss(teacher_output, student_output, teacher_input, student_input, **args)`."""

Outputs: TypeAlias = Mapping[str, Mapping[str, Tensor]]
"""`{layer: {output: tensor}}`, as an output adaptor gives them."""

mse = fkd.losses.mse
"""Mean squared error over all elements."""


def mse_with_mask(student_x: Tensor, teacher_x: Tensor, mask: Tensor) -> Tensor | Mean:
    """Mean squared error over all elements of the tokens that count.

        l = sum_bi m_bi sum_d (s_bid - t_bid)^2 / (D sum_bi m_bi),   0 if no token counts

    Args:
      student_x: `[batch, token, hidden]`.
      teacher_x: `[batch, token, hidden]`.
      mask: `[batch, token]`, not 0 where a token counts.

    Returns:
      A `Mean` over tokens.

    Example:
      >>> s, t = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
      >>> mse_with_mask(s, t, torch.tensor([[1, 0]]))
      Mean(total=tensor(1.), count=tensor(1.))
    """
    where = mask != 0
    return mean(fkd.losses.mse(student_x, teacher_x, where=where), where=where)


def attention_mse_with_mask(student_x: Tensor, teacher_x: Tensor, mask: Tensor) -> Tensor | Mean:
    """Mean squared error over all pairs of tokens that count.

        l = sum_bhij m_bi m_bj (s_bhij - t_bhij)^2 / (H sum_b n_b^2),   n_b = sum_i m_bi

    Args:
      student_x: `[batch, head, token, token]`, scores or probabilities.
      teacher_x: `[batch, head, token, token]`.
      mask: `[batch, token]`, not 0 where a token counts.

    Returns:
      A `Mean` over pairs of tokens.

    Example:
      >>> s, t = torch.zeros(1, 2, 3, 3), torch.ones(1, 2, 3, 3)
      >>> attention_mse_with_mask(s, t, torch.tensor([[1, 1, 0]]))
      Mean(total=tensor(8.), count=tensor(8.))
    """
    return fkd.losses.attention_mse(student_x, teacher_x, normalize="pair", where=mask != 0)


def cos(student_x: Tensor, teacher_x: Tensor) -> Tensor:
    """Cosine distance between feature vectors: `1/2 - 1/2 cos(s, t)` for every position.

    Args:
      student_x: `[*batch, hidden]`.
      teacher_x: `[*batch, hidden]`.

    Returns:
      `[*batch]`, in [0, 1].

    Example:
      >>> cos(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
      tensor([0.5000])
    """
    return 0.5 * fkd.losses.cosine(student_x, teacher_x)


def cross_entropy(student_logits: Tensor, target: Tensor, **args: Any) -> Tensor | Mean:
    """Cross-entropy of the student's logits with logits of the teacher, or with labels.

        floating targets (logits):   l = -sum_v p_v log q_v,   p = softmax(t), q = softmax(s)
        integer targets (labels):    l = -log q_y

    Args:
      student_logits: `[*batch, vocab]`: the classes are the last axis.
      target: `[*batch, vocab]` logits, or `[*batch]` labels; those that are -100 do not count.
      args: options of `fkd.losses.soft_cross_entropy` (`temperature`) or
        `fkd.losses.cross_entropy` (`ignore_index`, `label_smoothing`).

    Returns:
      `[*batch]` for logits; a `Mean` over the labels that count.

    Example:
      >>> from fkd.interop.knowledge_distillation import cross_entropy
      >>> cross_entropy(torch.zeros(1, 2), torch.tensor([1])).value
      tensor(0.6931)
      >>> cross_entropy(torch.zeros(1, 2), torch.zeros(1, 2))
      tensor([0.6931])
    """
    if target.is_floating_point():
        return fkd.losses.soft_cross_entropy(student_logits, target, **args)
    values = fkd.losses.cross_entropy(student_logits, target, **args)
    return mean(values, where=target != args.get("ignore_index", -100))


def label_cross_entropy(student_logits: Tensor, labels: Tensor, **args: Any) -> Tensor | Mean:
    """Cross-entropy with the ground truth: class numbers, or probabilities of the classes.

    As in torch the classes may also be the axis after the first, `[batch, vocab, *rest]` for labels
    `[batch, *rest]`.
    """
    if labels.ndim == student_logits.ndim - 1 and labels.shape != student_logits.shape[:-1]:
        student_logits = student_logits.movedim(1, -1)
    target = labels.log() if labels.is_floating_point() else labels
    return cross_entropy(student_logits, target, **args)


NAMED: Mapping[str, Callable[..., Any]] = {
    "mse": mse,
    "mse_with_mask": mse_with_mask,
    "attention_mse_with_mask": attention_mse_with_mask,
    "cross_entropy": cross_entropy,
    "cos": cos,
}
"""The losses that a config may name."""

MASKED = frozenset({"mse_with_mask", "attention_mse_with_mask"})
"""Those of them that take the attention mask."""


def as_teacher_loss(fn: UserLoss, args: Mapping[str, Any]) -> Callable[..., Any]:
    """A function of the user between teacher and student, as the loss of a term."""

    def loss(student_x: Any, teacher_x: Any, student_input: Any, teacher_input: Any) -> Any:
        return fn(teacher_x, student_x, teacher_input, student_input, **args)

    return _named(loss, fn)


def as_label_loss(fn: UserLoss, args: Mapping[str, Any]) -> Callable[..., Any]:
    """A function of the user between student and ground truth, as the loss of a term."""

    def loss(student_x: Any, truth: Any) -> Any:
        return fn(student_x, truth, **args)

    return _named(loss, fn)


def _named(loss: Callable[..., Any], fn: UserLoss) -> Callable[..., Any]:
    loss.__name__ = name_of(fn)
    return loss
