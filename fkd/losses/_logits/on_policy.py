"""Losses at one sampled token: what a student that generates its own text needs."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.checks import one_of
from .._shared.labels import check_labels, labels_index
from .._shared.masks import keep
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
