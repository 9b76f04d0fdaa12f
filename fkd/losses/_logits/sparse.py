"""Losses on a sparse teacher: its k most probable classes, or classes sampled from it."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from .._shared.checks import floating, same_shape, softenable
from .._shared.grouped import grouped, log_rest, log_softmax
from .._shared.masks import fill, keep, soften
from .._shared.softmax import cross, logsumexp, squared


def top_k_kl(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_log_probs: Float[Tensor, "*batch k"],
    teacher_ids: Integer[Tensor, "*batch k"],
    *,
    rest: Literal["tail", "renormalize", "truncate"] = "tail",
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """KL divergence of the student from a teacher known on k classes.

        tail:        T^2 (sum_k p_k log(p_k / q_k) + p_r log(p_r / q_r)),  r: all other classes
        renormalize: T^2 sum_k p'_k log(p'_k / q'_k),  p' = p / sum_k p_k,  q' = q / sum_k q_k
        truncate:    T^2 sum_k p_k log(p_k / q_k)
        q = softmax(student / T)

    `tail` is a lower bound of `kl` and constrains the probability outside the k classes;
    `renormalize` ignores it, and was farthest from the gradient of `kl` where it was measured (41 %
    off at k = 64 on trained models; truncate 24 %, tail 7.5 %); `truncate` may be negative. All
    equal `kl` if k is the whole vocabulary. DistillKit's ZERO is `truncate` of renormalised
    log-probabilities, `teacher_log_probs.log_softmax(-1)`.

    Args:
      student_logits: `[*batch, vocab]`. `-inf` means probability 0.
      teacher_log_probs: `[*batch, k]`, log p of the whole vocabulary, at temperature T; `-inf`
        marks an unused place. (`renormalize` takes unnormalised logits over T as well.)
      teacher_ids: `[*batch, k]`, their classes, each at most once, from 0 to vocab - 1.
      rest: what becomes of the other classes.
      temperature: T > 0, a number or a tensor `[*batch, 1]`, one T a position.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, in nats; non-negative unless `truncate`.

    Example:
      >>> teacher = torch.tensor([[2.0, 1.0, 0.0]])
      >>> top_k_kl(torch.zeros(1, 3), *top_k(teacher, 2))
      tensor([0.2662])

    Reference:
      Anshumann et al., Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs,
      arXiv:2503.16870 (on the bias of top-k).
    """
    s, log_p, ids = _sparse(
        "top_k_kl", student_logits, teacher_log_probs, teacher_ids, temperature, where
    )
    if rest == "tail":
        used = log_p > -torch.inf
        log_p, log_q = _with_rest(log_p, used, s.shape[-1]), log_softmax(grouped(s, ids, used))
        return keep(squared(temperature) * _remaining(log_p, log_q), where)
    log_q = s.gather(-1, ids)
    if rest == "renormalize":
        log_p, log_q = F.log_softmax(log_p, dim=-1), _log_softmax(log_q, log_p)
        return keep(squared(temperature) * _remaining(log_p, log_q), where)
    elif rest == "truncate":
        log_q = log_q - logsumexp(s)
    else:
        raise ValueError(
            f"top_k_kl: rest is {rest!r}; 'tail', 'renormalize' or 'truncate' is expected."
        )
    values = cross(log_p.exp(), log_p - log_q)
    return keep(squared(temperature) * values, where)


def sampled_kl(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_log_probs: Float[Tensor, "*batch draws"],
    teacher_ids: Integer[Tensor, "*batch draws"],
    weights: Float[Tensor, "*batch draws"],
    *,
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Unbiased estimate of `kl` from classes drawn from the teacher (RS-KD).

        sampled_kl = T^2 sum_i w_i (log p_i - log q_i),   q = softmax(student / T)

    Its expectation over the draws is `kl`, and so is that of its gradient; a single value may
    be negative. See `sample` for draws and weights.

    Args:
      student_logits: `[*batch, vocab]`. `-inf` means probability 0.
      teacher_log_probs: `[*batch, draws]`, log p at temperature T.
      teacher_ids: `[*batch, draws]`, the classes drawn, with replacement.
      weights: `[*batch, draws]`, p_i / (n r_i) for n draws from a proposal r; counts / n if
        r = p and draws of one class are merged. A weight of 0 marks an unused place.
      temperature: T > 0, a number or a tensor `[*batch, 1]`, one T a position.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, in nats.

    Example:
      >>> teacher = torch.tensor([[2.0, 1.0, 0.0]])
      >>> sampled_kl(torch.zeros(1, 3), *sample(teacher, torch.tensor([[0.1, 0.9]])))
      tensor([0.1910])

    Reference:
      Anshumann et al., arXiv:2503.16870.
    """
    s, log_p, ids = _sparse(
        "sampled_kl", student_logits, teacher_log_probs, teacher_ids, temperature, where
    )
    same_shape("sampled_kl", weights=weights, teacher_ids=teacher_ids)
    (weights,) = fill(weights, where=where)
    log_q = s.gather(-1, ids) - logsumexp(s)
    return keep(squared(temperature) * cross(weights, log_p - log_q), where)


def sampled_cross_entropy(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_ids: Integer[Tensor, "*batch draws"],
    weights: Float[Tensor, "*batch draws"],
    *,
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Unbiased estimate of `soft_cross_entropy` from classes drawn from the teacher (RS-KD).

        sampled_cross_entropy = -T^2 sum_i w_i log q_i,   q = softmax(student / T)

    `sampled_kl` without the teacher's part: the same gradient, from ids and counts alone.

    Args:
      student_logits: `[*batch, vocab]`. `-inf` means probability 0.
      teacher_ids: `[*batch, draws]`, the classes drawn, with replacement.
      weights: `[*batch, draws]`, as in `sampled_kl`.
      temperature: T > 0, a number or a tensor `[*batch, 1]`, one T a position.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, non-negative, in nats.

    Example:
      >>> ids, counts = torch.tensor([[0, 1]]), torch.tensor([[3.0, 1.0]])
      >>> sampled_cross_entropy(torch.zeros(1, 2), ids, counts / 4)
      tensor([0.6931])

    Reference:
      Anshumann et al., arXiv:2503.16870.
    """
    s, weights, ids = _sparse(
        "sampled_cross_entropy", student_logits, weights, teacher_ids, temperature, where
    )
    log_q = s.gather(-1, ids) - logsumexp(s)
    return keep(-squared(temperature) * cross(weights, log_q), where)


def _sparse(
    loss: str,
    student_logits: Tensor,
    entries: Tensor,
    ids: Tensor,
    temperature: float | Tensor,
    where: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Softened logits, the teacher's entries, and ids safe to gather with."""
    floating(loss, student_logits=student_logits, teacher_entries=entries)
    if ids.shape != entries.shape or ids.shape[:-1] != student_logits.shape[:-1]:
        raise ValueError(
            f"{loss}: teacher_ids {tuple(ids.shape)} must have the shape of the teacher's entries "
            f"{tuple(entries.shape)} and the leading shape of student_logits "
            f"{tuple(student_logits.shape)}."
        )
    softenable(loss, where, student_logits, temperature)
    s, entries = fill(student_logits, entries, where=where)
    ids = ids.long()  # compact ones (uint16) can do no more than this
    if where is not None:
        ids = ids.masked_fill(~where.bool().unsqueeze(-1), 0)
    return soften(s, temperature), entries, ids


def _log_softmax(log_q: Tensor, log_p: Tensor) -> Tensor:
    """log q' over the places in use."""
    used = log_p > -torch.inf
    log_q = log_q.masked_fill(~used, -torch.inf)
    return log_q - logsumexp(log_q)


def _remaining(log_p: Tensor, log_q: Tensor) -> Tensor:
    """`sum_v p_v (log p_v - log q_v)` as in `relative_entropy`, where what is listed may not sum to
    1 exactly (half precision rounds each of the teacher's entries by itself)."""
    p = log_p.exp()
    share = p.detach().sum(-1, keepdim=True)
    return cross(p, log_p - log_q) + (share * log_q.exp() - p.detach()).sum(-1)


def _with_rest(log_p: Tensor, used: Tensor, vocab: int) -> Tensor:
    """log p, and at the end that of all other classes together."""
    rest = log_rest(log_p).unsqueeze(-1)
    if log_p.shape[-1] >= vocab:
        # A full list leaves nothing; what rounding leaves has no class to belong to.
        rest = rest.masked_fill(used.sum(-1, keepdim=True) >= vocab, -torch.inf)
    return torch.cat([log_p, rest], dim=-1)
