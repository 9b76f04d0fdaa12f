"""GOLD: distributions of two tokenizers over stretches of the same text."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.checks import axes, between, covers, floating, positive, same_shape
from .._shared.masks import fill, keep, soften
from .._shared.softmax import cross


def merged_log_probs(
    logits: Float[Tensor, "rows length vocab"],
    ids: Int[Tensor, "rows length"],
    spans: Int[Tensor, "rows length"],
    kept: Bool[Tensor, "rows spans"],
    *,
    temperature: float | Tensor = 1.0,
) -> Float[Tensor, "rows spans vocab"]:
    """What a span of several tokens begins with, times the probability of how it goes on.

        log P(y at the first token) + sum_later log P(its token),   P = softmax(logits / T)

    At the token that stands there, `y`, it is the log-probability of the whole text of the span, as
    `span_log_probs` gives it. A span of one token is what the model says there. The sum over `y` is
    less than 1 where tokens were merged.

    Args:
      logits: `[rows, length, vocab]`.
      ids: `[rows, length]`, the next token at each position, `batch.targets`.
      spans: `[rows, length]`, the number of the span that the next token is in, -1 for none;
        `Spans` of `fkd.loops.language.align` has it, and `kept`.
      kept: `[rows, spans]`, True for a span.
      temperature: T > 0.

    Returns:
      `[rows, spans, vocab]`, for `gold`; 0 where there is no span.

    Example:
      >>> ids, spans = torch.tensor([[1, 0]]), torch.tensor([[0, 0]])
      >>> merged_log_probs(torch.zeros(1, 2, 2), ids, spans, torch.tensor([[True]])).exp()
      tensor([[[0.2500, 0.2500]]])

    Reference:
      Patiño et al., Unlocking On-Policy Distillation for Any Model Family, 2025,
      huggingface.co/spaces/HuggingFaceH4/on-policy-distillation.
    """
    floating("merged_log_probs", logits=logits)
    axes("merged_log_probs", "rows length vocab", logits=logits)
    same_shape("merged_log_probs", ids=ids, spans=spans)
    covers("merged_log_probs", spans, logits.shape[:-1])
    positive("merged_log_probs", temperature=temperature)
    inside = spans >= 0
    number = spans.clamp(min=0)
    log_p = F.log_softmax(soften(fill(logits, where=inside)[0], temperature), dim=-1)
    place = torch.arange(spans.shape[1], device=spans.device).expand_as(spans)
    beyond = torch.full(kept.shape, spans.shape[1], device=spans.device, dtype=place.dtype)
    first = beyond.scatter_reduce(
        1, number, place.where(inside, beyond.new_tensor(1 << 30)), "amin"
    )
    later = inside & (place != first.gather(1, number))
    said = log_p.gather(-1, ids.clamp(min=0).long()[..., None]).squeeze(-1)
    goes_on = log_p.new_zeros(kept.shape).scatter_add(1, number, said.masked_fill(~later, 0.0))
    at = first.clamp(max=spans.shape[1] - 1)[..., None].expand(-1, -1, logits.shape[-1])
    return (log_p.gather(1, at) + goes_on[..., None]).masked_fill(~kept[..., None], 0.0)


def gold(
    student_log_probs: Float[Tensor, "*batch student_vocab"],
    teacher_log_probs: Float[Tensor, "*batch teacher_vocab"],
    student_ids: Int[Tensor, " shared"],
    teacher_ids: Int[Tensor, " shared"],
    *,
    beta: float | Tensor = 0.5,
    matched: float | Tensor | None = None,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """What both vocabularies have is compared entry by entry, and the others by rank.

        gold = matched * sum_shared (beta p log(p / m) + (1 - beta) q log(q / m))
               + (1 - matched) * sum_i |p_(i) - q_(i)| over the others
        p = exp(teacher),  q = exp(student),  m = beta p + (1 - beta) q

    with the others sorted, and the fewer padded by 0, as in `uld`. p and q need not sum to 1: they
    are of merged tokens (`merged_log_probs`). No summand is negative all the same. The shared
    entries give 0 at beta = 0 and beta = 1, as in `jsd`. (TRL takes the two KLs there.)

    Args:
      student_log_probs: `[*batch, student_vocab]`, at most 0; `-inf` means probability 0.
      teacher_log_probs: `[*batch, teacher_vocab]`, of the same spans.
      student_ids: `[shared]`, the student's ids of the shared entries, from
        `fkd.loops.language.shared_vocabulary`; each at most once.
      teacher_ids: `[shared]`, the teacher's ids of the same entries in the same order.
      beta: 0 <= beta <= 1, the weight of the teacher in the mixture, as in `jsd`.
      matched: 0 <= matched <= 1, the weight of the shared entries; None is the share of the
        teacher's vocabulary that they are.
      where: `[*batch]`, True for a span. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, >= 0.

    Example:
      >>> ids = torch.tensor([0, 1])
      >>> log_q, log_p = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.5, 0.25, 0.25]]).log()
      >>> gold(log_q, log_p, ids, ids)
      tensor([0.0975])

    Reference:
      Patiño et al., Unlocking On-Policy Distillation for Any Model Family, 2025,
      huggingface.co/spaces/HuggingFaceH4/on-policy-distillation; Boizard et al.,
      arXiv:2402.12030 (the others).
    """
    pair = {"student_log_probs": student_log_probs, "teacher_log_probs": teacher_log_probs}
    floating("gold", **pair)
    axes("gold", "*batch vocab", **pair)
    axes("gold", "shared", student_ids=student_ids, teacher_ids=teacher_ids)
    same_shape("gold", student_ids=student_ids, teacher_ids=teacher_ids)
    if student_log_probs.shape[:-1] != teacher_log_probs.shape[:-1]:
        raise ValueError(
            f"gold: student_log_probs {tuple(student_log_probs.shape)} and teacher_log_probs "
            f"{tuple(teacher_log_probs.shape)} must have the same spans. Align the two texts "
            "first: fkd.loops.language.align, and merged_log_probs."
        )
    between("gold", 0, 1, beta=beta)
    if matched is not None:
        between("gold", 0, 1, matched=matched)
    covers("gold", where, student_log_probs.shape[:-1])
    s, t = fill(student_log_probs, teacher_log_probs, where=where)
    share = student_ids.numel() / t.shape[-1] if matched is None else matched
    log_q, log_p = s.index_select(-1, student_ids), t.index_select(-1, teacher_ids)
    q, p = (1 - beta) * log_q.exp(), beta * log_p.exp()
    m = p + q
    log_m = torch.where(m > 0, m, 1.0).log()
    entries = cross(p, log_p - log_m) + cross(q, log_q - log_m)
    sizes = max(s.shape[-1], t.shape[-1])
    others = (_others(s, student_ids, sizes) - _others(t, teacher_ids, sizes)).abs().sum(-1)
    return keep(share * entries + (1 - share) * others, where)


def _others(log_probs: Tensor, ids: Tensor, size: int) -> Tensor:
    """`[*batch, size]`, the probabilities of all entries but these, sorted, and 0 behind them."""
    shared = torch.zeros(log_probs.shape[-1], dtype=torch.bool, device=ids.device)
    rest = log_probs.exp().masked_fill(shared.index_fill(0, ids, True), 0.0)
    return F.pad(rest.sort(-1, descending=True)[0], (0, size - rest.shape[-1]))
