"""Losses between stacks of layers `[*batch, layer, hidden]`, whose numbers of layers differ.

Stack the hidden states of a position (often the first token) with `torch.stack(..., dim=-2)`.
The widths must agree; map the student's first where they do not.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.checks import covers, floating
from .._shared.geometry import unit
from .._shared.masks import fill, keep
from .._shared.products import product


def alp(
    student_x: Float[Tensor, "*batch student_layer hidden"],
    teacher_x: Float[Tensor, "*batch teacher_layer hidden"],
    *,
    allowed: Bool[Tensor, "student_layer teacher_layer"] | None = None,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Mean squared error to an attention-weighted mix of all teacher layers (ALP-KD).

        l = 1/(n d) sum_i |s_i - c_i|^2,   c = mix_layers(s, t)

    Args:
      student_x: `[*batch, student_layer, hidden]`.
      teacher_x: `[*batch, teacher_layer, hidden]`, of the same hidden size.
      allowed: `[student_layer, teacher_layer]`, see `mix_layers`.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, non-negative. In general not 0 for equal models, since a mix of several layers
      is none of them.

    Example:
      >>> s, t = torch.zeros(2, 1, 4), torch.ones(2, 3, 4)
      >>> alp(s, t)
      tensor([1., 1.])

    Reference:
      Passban et al., ALP-KD: Attention-Based Layer Projection, arXiv:2012.14022.
    """
    student_x, teacher_x = _stacks("alp", student_x, teacher_x, where)
    covers("alp", allowed, (student_x.shape[-2], teacher_x.shape[-2]), name="allowed")
    mixed = mix_layers(student_x, teacher_x, allowed=allowed)
    return keep((student_x - mixed).square().mean((-2, -1)), where)


def mix_layers(
    student_x: Float[Tensor, "*batch student_layer hidden"],
    teacher_x: Float[Tensor, "*batch teacher_layer hidden"],
    *,
    allowed: Bool[Tensor, "student_layer teacher_layer"] | None = None,
) -> Float[Tensor, "*batch student_layer hidden"]:
    """For every student layer, a mix of the teacher's layers by dot-product attention.

        c_i = sum_j a_ij t_j,   a_i = softmax_j(s_i . t_j)

    The gradient flows into the student through the attention, too, as in the paper.

    Args:
      student_x: `[*batch, student_layer, hidden]`.
      teacher_x: `[*batch, teacher_layer, hidden]`, of the same hidden size.
      allowed: `[student_layer, teacher_layer]`, True where a student layer may attend to a
        teacher layer; at least one in every row. All of them if None.

    Returns:
      `[*batch, student_layer, hidden]`, in the convex hull of the teacher's layers.

    Example:
      >>> mix_layers(torch.zeros(1, 2), torch.tensor([[0.0, 4.0], [2.0, 0.0]]))
      tensor([[1., 2.]])

    Reference:
      Passban et al., ALP-KD: Attention-Based Layer Projection, arXiv:2012.14022.
    """
    student_x, teacher_x = _stacks("mix_layers", student_x, teacher_x, None)
    scores = product(student_x, teacher_x.mT)
    covers("mix_layers", allowed, scores.shape[-2:], name="allowed")
    if allowed is not None:
        scores = scores.masked_fill(~allowed.bool(), torch.finfo(scores.dtype).min)
    return product(scores.softmax(-1), teacher_x)


def rail(
    student_x: Float[Tensor, "*batch student_layer hidden"],
    teacher_x: Float[Tensor, "*batch teacher_layer hidden"],
    *,
    layers: Int[Tensor, " student_layer"],
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Squared distance of normalised student layers to a random subset of teacher layers.

        l = sum_i | s_i / |s_i| - t_j / |t_j| |^2,   j = layers[i]

    The choice is an argument, drawn again for every epoch or step, in ascending order:
    `torch.randperm(12)[:4].sort().values`. The paper takes means over the tokens and maps every
    layer by a linear layer of its own first (the layer-wise variant). Its concatenated variant
    is `pkd` of one linear layer on all student layers and one on the chosen teacher layers.

    Args:
      student_x: `[*batch, student_layer, hidden]`.
      teacher_x: `[*batch, teacher_layer, hidden]`, of the same hidden size.
      layers: `[student_layer]`, the index of the teacher's layer for every student layer.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, in [0, 4 student_layer].

    Example:
      >>> t = torch.eye(3)
      >>> rail(t[[0, 2]], t, layers=torch.tensor([0, 2]))
      tensor(0.)

    Reference:
      Haidar et al., RAIL-KD: RAndom Intermediate Layer Mapping, arXiv:2109.10164.
    """
    student_x, teacher_x = _stacks("rail", student_x, teacher_x, where)
    if layers.shape != student_x.shape[-2:-1]:
        raise ValueError(
            f"rail: layers {tuple(layers.shape)}; ({student_x.shape[-2]},) is expected, the index "
            "of a teacher layer for every student layer."
        )
    chosen = teacher_x.index_select(-2, layers)
    return keep((unit(student_x) - unit(chosen)).square().sum((-2, -1)), where)


def universal_kd(
    student_logits: Float[Tensor, "*batch student_layer vocab"],
    teacher_logits: Float[Tensor, "*batch teacher_layer vocab"],
    *,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """KL divergence of layers grounded in the output space, teacher layers mixed by attention.

        l = sum_i sum_v p_iv (log p_iv - log q_iv)
        p_i = softmax(mix_layers(s, t)_i),   q_i = softmax(s_i)

    The logits of a layer come from a classifier of its own on the layer's hidden state, so the
    two models need no common width.

    Args:
      student_logits: `[*batch, student_layer, vocab]`, finite.
      teacher_logits: `[*batch, teacher_layer, vocab]`, finite.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, non-negative, in nats.

    Example:
      >>> universal_kd(torch.zeros(5, 2, 3), torch.ones(5, 4, 3)).abs().max() < 1e-6
      tensor(True)

    Reference:
      Wu et al., Universal-KD: Attention-based Output-Grounded Intermediate Layer Knowledge
      Distillation, EMNLP 2021.
    """
    student_logits, teacher_logits = _stacks("universal_kd", student_logits, teacher_logits, where)
    log_p = F.log_softmax(mix_layers(student_logits, teacher_logits), dim=-1)
    log_q = F.log_softmax(student_logits, dim=-1)
    return keep((log_p.exp() * (log_p - log_q)).sum((-2, -1)), where)


def _stacks(
    loss: str, student_x: Tensor, teacher_x: Tensor, where: Tensor | None
) -> tuple[Tensor, ...]:
    floating(loss, student=student_x, teacher=teacher_x)
    s, t = student_x.shape, teacher_x.shape
    if len(s) < 2 or len(s) != len(t) or s[:-2] != t[:-2] or s[-1] != t[-1]:
        raise ValueError(
            f"{loss}: student {tuple(s)} and teacher {tuple(t)}; [*batch, layer, hidden] with the "
            "same batch and hidden size is expected. Map the student to the teacher's width first."
        )
    covers(loss, where, s[:-2])
    return fill(student_x, teacher_x, where=where)
