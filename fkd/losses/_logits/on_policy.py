"""Losses at one sampled token: what a student that generates its own text needs."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.checks import covers, one_of, same_shape
from .._shared.labels import check_labels, labels_index
from .._shared.masks import fill, keep
from .._shared.products import product
from .._shared.softmax import log_probabilities


def sampled_reverse_kl(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    ids: Int[Tensor, "*batch"],
    *,
    estimator: str = "k2",
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Estimates of `reverse_kl` from one token that the student has drawn (on-policy).

        d = log p_x - log q_x,   x drawn from q = softmax(student / T),  p of the teacher
        k1 = -d,   k2 = d^2 / 2,   k3 = exp(d) - 1 - d

    The draw is held constant by the gradient, so an estimator's value and gradient differ in
    what they are unbiased for. Value: k1 and k3 for `reverse_kl`, k2 for neither. Gradient: k2
    for that of `reverse_kl` (it is the policy gradient with reward d), k3 for that of `kl`; k1
    has a gradient of mean zero. So train with k2 and log k3. Not multiplied by T^2.

    Args:
      student_logits: `[*batch, vocab]`.
      teacher_logits: `[*batch, vocab]`. `-inf` at a drawn token is an infinite divergence.
      ids: `[*batch]`, tokens drawn from the student; anything where `where` is False.
      estimator: `"k1"`, `"k2"` or `"k3"`.
      temperature: T > 0, that of the draw.
      where: `[*batch]`, True where a token counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, in nats; non-negative for k2 and k3.

    Example:
      >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.6, 0.4]]).log()
      >>> sampled_reverse_kl(student, teacher, torch.tensor([0]), estimator="k1")
      tensor([-0.1823])

    Reference:
      Schulman, Approximating KL Divergence, 2020 (joschu.net/blog/kl-approx.html);
      on-policy distillation: Agarwal et al., arXiv:2306.13649.
    """
    one_of("sampled_reverse_kl", "estimator", estimator, ("k1", "k2", "k3"))
    check_labels("sampled_reverse_kl", student_logits, ids)
    both = log_probabilities(
        "sampled_reverse_kl", student_logits, teacher_logits, temperature, where
    )
    log_q, log_p = (x.gather(-1, labels_index(ids, where)).squeeze(-1) for x in both)
    d = log_p - log_q
    values = {"k1": -d, "k2": d.square() / 2, "k3": torch.expm1(d) - d}[estimator]
    return keep(values, where)


def policy_reverse_kl(
    student_log_probs: Float[Tensor, "*batch length"],
    teacher_log_probs: Float[Tensor, "*batch length"],
    *,
    behaviour: Float[Tensor, "*batch length"] | None = None,
    discount: float = 0.0,
    skip: int = 0,
    clip: float | None = None,
    where: Bool[Tensor, "*batch length"] | Int[Tensor, "*batch length"] | None = None,
) -> Float[Tensor, "*batch length"]:
    """Policy gradient of the reverse KL from the log-probabilities of drawn tokens alone.

        A_t = sum_{s >= t + skip} discount^(s - t - skip) (log p_s - log q_s), a constant
        r_t = q_t / behaviour_t
        loss_t = -min(r_t A_t, clip(r_t, 1 - c, 1 + c) A_t)

    For texts that the student has written: of the teacher no more is needed than a server's answer.
    With discount 0 its gradient is that of `sampled_reverse_kl(estimator="k2")`: of each position,
    given its context. With discount 1 it is that of the KL between whole texts. `skip=1` leaves
    out the position itself, whose part `reverse_kl` then gives exactly (MiniLLM).

    Args:
      student_log_probs: `[*batch, length]`, log q of each drawn token, from `token_log_probs`.
      teacher_log_probs: `[*batch, length]`, log p of the same tokens.
      behaviour: `[*batch, length]`, log-probabilities under the student that wrote the text, if it
        has moved on since (`generator(behaviour=True)`). None: the student itself.
      discount: from 0 (what a token does to itself) to 1 (to the whole text).
      skip: how many positions later rewards begin, 0 or 1.
      clip: c of the clipped ratio (PPO); None does not clip.
      where: `[*batch, length]`, True for a token that was drawn. Others yield 0 and no gradient,
        and nothing to others.

    Returns:
      `[*batch, length]`. With discount 0, its mean estimates `reverse_kl`.

    Example:
      >>> q, p = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.25]).log()
      >>> policy_reverse_kl(q, p)
      tensor([0.6931, 0.6931])

    Reference:
      Gu et al., MiniLLM, arXiv:2306.08543; Agarwal et al., arXiv:2306.13649; Lu and Thinking
      Machines, On-Policy Distillation, 2025 (thinkingmachines.ai/blog/on-policy-distillation).
    """
    same_shape(
        "policy_reverse_kl",
        student_log_probs=student_log_probs,
        teacher_log_probs=teacher_log_probs,
    )
    covers("policy_reverse_kl", where, student_log_probs.shape)
    if not 0 <= discount <= 1 or skip not in (0, 1) or (clip is not None and not clip > 0):
        raise ValueError(
            f"policy_reverse_kl: discount={discount}, skip={skip}, clip={clip}; from 0 to 1, 0 or "
            "1, and a positive number or None are expected."
        )
    log_q, log_p = fill(student_log_probs, teacher_log_probs, where=where)
    advantage = _returns(keep((log_p - log_q).detach(), where), discount, skip)
    old = log_q.detach() if behaviour is None else fill(behaviour, where=where)[0]
    ratio = torch.exp(log_q - old)
    gain = ratio * advantage
    if clip is not None:
        gain = torch.minimum(gain, ratio.clamp(1 - clip, 1 + clip) * advantage)
    return keep(-gain, where)


def _returns(rewards: Tensor, discount: float, skip: int) -> Tensor:
    """The discounted sum of the rewards from each position (or the next) on."""
    if discount == 1:
        total = rewards.flip(-1).cumsum(-1).flip(-1)
    elif discount == 0:
        total = rewards
    else:
        place = torch.arange(rewards.shape[-1], device=rewards.device)
        distance = place - place[:, None]
        powers = torch.where(distance >= 0, discount ** distance.clamp(min=0).to(rewards), 0.0)
        total = product(rewards, powers.to(rewards.dtype).T)
    if skip:
        total = torch.cat([total[..., 1:], torch.zeros_like(total[..., :1])], dim=-1)
    return total
