"""Losses between models of two tokenizers, at positions or over stretches that were aligned.

`fkd.loops.language.align` says where both have read the same bytes, and which tokens lie between.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.checks import axes, covers, floating, positive, same_shape, softenable
from .._shared.masks import fill, keep, soften
from .._shared.softmax import logsumexp, relative_entropy, squared


def shared_kl(
    student_logits: Float[Tensor, "*batch student_vocab"],
    teacher_logits: Float[Tensor, "*batch teacher_vocab"],
    student_ids: Int[Tensor, " shared"],
    teacher_ids: Int[Tensor, " shared"],
    *,
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """KL over the entries that both vocabularies have, and one more entry for all others.

        T^2 (sum_shared p log(p / q) + p_rest log(p_rest / q_rest))
        p = softmax(teacher / T),  q = softmax(student / T),  p_rest = 1 - sum_shared p

    Both distributions are coarsened alike, so that it is a divergence, and 0 only if the two agree
    on every shared entry. Where one vocabulary has no other entries, both are distributions over
    the shared ones.

    Args:
      student_logits: `[*batch, student_vocab]`.
      teacher_logits: `[*batch, teacher_vocab]`, at positions that have read the same text.
      student_ids: `[shared]`, the student's ids of the shared entries, from
        `fkd.loops.language.shared_vocabulary`; each at most once.
      teacher_ids: `[shared]`, the teacher's ids of the same entries in the same order.
      temperature: T > 0, a number or a tensor that broadcasts against the logits.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, in nats, >= 0.

    Example:
      >>> shared_kl(torch.zeros(1, 2), torch.zeros(1, 4), torch.tensor([0]), torch.tensor([3]))
      tensor([0.1308])

    Reference:
      Hinton et al., arXiv:1503.02531, on the shared entries; compare the hybrid loss of GOLD
      (Patiño et al., 2025, huggingface.co/spaces/HuggingFaceH4/on-policy-distillation).
    """
    floating("shared_kl", student_logits=student_logits, teacher_logits=teacher_logits)
    axes("shared_kl", "shared", student_ids=student_ids, teacher_ids=teacher_ids)
    same_shape("shared_kl", student_ids=student_ids, teacher_ids=teacher_ids)
    axes("shared_kl", "*batch vocab", student_logits=student_logits, teacher_logits=teacher_logits)
    if student_logits.shape[:-1] != teacher_logits.shape[:-1]:
        raise ValueError(
            f"shared_kl: student_logits {tuple(student_logits.shape)} and teacher_logits "
            f"{tuple(teacher_logits.shape)} must have the same positions. Align them first: "
            "fkd.loops.language.align."
        )
    softenable("shared_kl", where, student_logits, temperature)
    s, t = (fill(x, where=where)[0] for x in (student_logits, teacher_logits))
    rest = student_ids.numel() < min(s.shape[-1], t.shape[-1])
    log_q = _coarsened(soften(s, temperature), student_ids, rest)
    log_p = _coarsened(soften(t, temperature), teacher_ids, rest)
    return keep(squared(temperature) * relative_entropy(log_p, log_q), where)


def alm(
    student_log_probs: Float[Tensor, "*batch spans"],
    teacher_log_probs: Float[Tensor, "*batch spans"],
    *,
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch spans"] | Int[Tensor, "*batch spans"] | None = None,
) -> Float[Tensor, "*batch spans"]:
    """Approximate likelihood matching: KL between {this text, any other}, span by span.

        p log(p / q) + (1 - p) log((1 - p) / (1 - q))
        p = exp(teacher / T),  q = exp(student / T)

    Args:
      student_log_probs: `[*batch, spans]`, the log-probability of each span's text, from
        `span_log_probs`; at most 0.
      teacher_log_probs: of the same spans by the teacher's tokens.
      temperature: T > 0; a large one compares small probabilities more evenly.
      where: `[*batch, spans]`, True for a span. Others yield 0 and no gradient.

    Returns:
      `[*batch, spans]`, in nats, >= 0.

    Example:
      >>> half, quarter = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
      >>> alm(half, quarter)
      tensor([0.1308])

    Reference:
      Minixhofer et al., Universal Cross-Tokenizer Distillation via Approximate Likelihood
      Matching, arXiv:2503.20083.
    """
    floating("alm", student_log_probs=student_log_probs, teacher_log_probs=teacher_log_probs)
    same_shape("alm", student_log_probs=student_log_probs, teacher_log_probs=teacher_log_probs)
    positive("alm", temperature=temperature)
    covers("alm", where, student_log_probs.shape)
    s, t = fill(student_log_probs, teacher_log_probs, where=where)
    # A certain text leaves no probability for others; the bound keeps its logarithm finite.
    least = torch.finfo(s.dtype).eps
    s, t = ((x / temperature).clamp(max=-least) for x in (s, t))
    other_s, other_t = (torch.log(-torch.expm1(x)) for x in (s, t))
    return keep(t.exp() * (t - s) + other_t.exp() * (other_t - other_s), where)


def token_log_probs(
    logits: Float[Tensor, "*batch vocab"],
    ids: Int[Tensor, "*batch"],
    *,
    temperature: float | Tensor = 1.0,
) -> Float[Tensor, "*batch"]:
    """The log-probability of one token at each position, and 0 where the id is negative.

        log softmax(logits / T)[id]

    Args:
      logits: `[*batch, vocab]`.
      ids: `[*batch]`; for a causal model the next tokens, `batch.targets`.
      temperature: T > 0.

    Returns:
      `[*batch]`, at most 0.

    Example:
      >>> token_log_probs(torch.zeros(2, 4), torch.tensor([1, -100])).exp()
      tensor([0.2500, 1.0000])
    """
    floating("token_log_probs", logits=logits)
    positive("token_log_probs", temperature=temperature)
    if ids.shape != logits.shape[:-1]:
        raise ValueError(
            f"token_log_probs: ids {tuple(ids.shape)} must be the leading shape of logits "
            f"{tuple(logits.shape)}: one token at each position."
        )
    counts = ids >= 0
    z = soften(fill(logits, where=counts)[0], temperature)
    chosen = F.log_softmax(z, dim=-1).gather(-1, ids.clamp(min=0).long().unsqueeze(-1))
    return keep(chosen.squeeze(-1), counts)


def span_log_probs(
    log_probs: Float[Tensor, "rows length"],
    spans: Int[Tensor, "rows length"],
    kept: Bool[Tensor, "rows spans"],
) -> Float[Tensor, "rows spans"]:
    """The log-probability of the text of each span: the sum over its tokens, by the chain rule.

    Args:
      log_probs: `[rows, length]`, of the next token at each position, from `token_log_probs`.
      spans: `[rows, length]`, the number of the span that the next token is in, -1 for none.
      kept: `[rows, spans]`, True for a span; `Spans` of `fkd.loops.language.align` has both.

    Returns:
      `[rows, spans]`, 0 where there is no span.

    Example:
      >>> log_probs = torch.tensor([[-1.0, -2.0, -4.0]])
      >>> span_log_probs(log_probs, torch.tensor([[0, 0, -1]]), torch.tensor([[True]]))
      tensor([[-3.]])
    """
    inside = spans >= 0
    start = log_probs.new_zeros(kept.shape)
    total = start.scatter_add(1, spans.clamp(min=0), log_probs.masked_fill(~inside, 0.0))
    return total.masked_fill(~kept, 0.0)


def _coarsened(logits: Tensor, ids: Tensor, rest: bool) -> Tensor:
    """`[*batch, shared + 1]`, log-probabilities of some entries, and of all others together; or
    `[*batch, shared]`, among these alone."""
    if not rest:
        return F.log_softmax(logits.index_select(-1, ids), dim=-1)
    log_p = F.log_softmax(logits, dim=-1)
    chosen = log_p.index_select(-1, ids)
    shared = torch.zeros(logits.shape[-1], dtype=torch.bool, device=ids.device)
    others = log_p.masked_fill(shared.index_fill(0, ids, True), -torch.inf)
    return torch.cat([chosen, logsumexp(others)], dim=-1)
