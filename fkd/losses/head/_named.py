"""The named divergences. p is the teacher's distribution, q the student's; 0 log 0 = 0.

Some summands have q - p, m - p or m - q added, which sum to 0 over the vocabulary, so that no
entry is negative. A rule returns the summand phi and `d phi / d log q`, the latter with that
multiple of q added which makes it 0 at p = q: multiples of q cancel in q (g - E_q[g]), and the
gradient of a nearly converged student keeps its digits when there is little to cancel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._divergence import Divergence, one

Pair = tuple[Tensor, Tensor]


def kl() -> Divergence:
    """KL divergence of the student from the teacher, `sum_v p (log p - log q)`.

    Returns:
      A `Divergence`: `fkd.losses.kl` of the logits, T^2 included.

    Reference:
      Hinton et al., Distilling the Knowledge in a Neural Network, arXiv:1503.02531.
    """
    return one("kl", lambda log_p, log_q, p, q: (_product(p, log_p - log_q) + (q - p), q - p))


def soft_cross_entropy() -> Divergence:
    """Cross-entropy against the teacher, `-sum_v p log q`: `kl` plus the teacher's entropy.

    Returns:
      A `Divergence`; T^2 included.

    Reference:
      Hinton et al., Distilling the Knowledge in a Neural Network, arXiv:1503.02531.
    """
    return one("soft_cross_entropy", lambda log_p, log_q, p, q: (q - p - _product(p, log_q), q - p))


def reverse_kl() -> Divergence:
    """KL divergence of the teacher from the student, `sum_v q (log q - log p)`.

    Returns:
      A `Divergence`; T^2 included. Infinite where the teacher rules out what the student does
      not: restrict both to a common vocabulary first.

    Reference:
      Gu et al., MiniLLM: Knowledge Distillation of Large Language Models, arXiv:2306.08543.
    """

    def rule(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> Pair:
        of_q = _product(q, log_q - log_p)
        return of_q + (p - q), of_q

    return one("reverse_kl", rule)


def jsd(beta: float = 0.5) -> Divergence:
    """Generalised Jensen-Shannon divergence, with m = beta p + (1 - beta) q.

        jsd = beta KL(p || m) + (1 - beta) KL(q || m)

    Args:
      beta: the teacher's share of the mixture, 0 < beta < 1. As beta -> 0, jsd / beta tends to
        `kl`; as beta -> 1, jsd / (1 - beta) tends to `reverse_kl`.

    Returns:
      A `Divergence`; T^2 included.

    Reference:
      Agarwal et al., On-Policy Distillation of Language Models, arXiv:2306.13649.
    """
    _between("jsd", "beta", beta)

    def rule(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> Pair:
        log_m = torch.log(_mixture(q, p, beta))
        of_q = q * (_finite(log_q) - log_m)
        return torch.lerp(of_q, p * (_finite(log_p) - log_m), beta), (1 - beta) * of_q

    return one("jsd", rule, beta)


def skew_kl(skew: float = 0.1) -> Divergence:
    """Skewed KL divergence, `KL(p || skew p + (1 - skew) q)`.

    Args:
      skew: the teacher's share of the mixture, 0 < skew < 1; the limit at 0 is `kl`.

    Returns:
      A `Divergence`; T^2 included.

    Reference:
      Ko et al., DistiLLM: Towards Streamlined Distillation for Large Language Models,
      arXiv:2402.03898.
    """
    _between("skew_kl", "skew", skew, "kl()")

    def rule(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> Pair:
        m = _mixture(q, p, skew)
        return p * (_finite(log_p) - torch.log(m)) + (m - p), (1 - skew) * q * ((m - p) / m)

    return one("skew_kl", rule, skew)


def skew_reverse_kl(skew: float = 0.1) -> Divergence:
    """Skewed reverse KL divergence, `KL(q || skew q + (1 - skew) p)`.

    Args:
      skew: the student's share of the mixture, 0 < skew < 1; the limit at 0 is
        `reverse_kl`.

    Returns:
      A `Divergence`; T^2 included.

    Reference:
      Ko et al., DistiLLM: Towards Streamlined Distillation for Large Language Models,
      arXiv:2402.03898.
    """
    _between("skew_reverse_kl", "skew", skew, "reverse_kl()")

    def rule(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> Pair:
        m = _mixture(p, q, skew)
        phi = q * (_finite(log_q) - torch.log(m))
        return phi + (m - q), phi + skew * q * ((m - q) / m)

    return one("skew_reverse_kl", rule, skew)


def total_variation() -> Divergence:
    """Total variation distance, `1/2 sum_v |p - q|`: one minus the acceptance of a drafter.

    Returns:
      A `Divergence`; without T^2, so that it stays a distance.

    Reference:
      Wen et al., f-Divergence Minimization for Sequence-Level Knowledge Distillation,
      arXiv:2307.15190.
    """
    return one(
        "total_variation",
        lambda log_p, log_q, p, q: (0.5 * (p - q).abs(), 0.5 * q * torch.sign(q - p)),
        square=False,
    )


def alpha_divergence(alpha: float) -> Divergence:
    """Alpha-divergence, `(1 - sum_v p^alpha q^(1 - alpha)) / (alpha (1 - alpha))`.

    Args:
      alpha: any number but 0 (the limit is `reverse_kl`) and 1 (the limit is `kl`).

    Returns:
      A `Divergence`; T^2 included.

    Reference:
      Minka, Divergence measures and message passing, Microsoft Research, 2005.
    """
    if alpha in (0.0, 1.0):
        raise ValueError(
            f"alpha_divergence: alpha {alpha} divides by zero; any other number is expected. "
            f"Use {'kl()' if alpha else 'reverse_kl()'}, the limit."
        )

    def rule(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> Pair:
        dead = torch.isneginf(log_p) & torch.isneginf(log_q)
        exponent = torch.where(dead, 0.0, alpha * log_p + (1 - alpha) * log_q)
        power = torch.exp(exponent).masked_fill(dead, 0.0)
        # alpha p + (1 - alpha) q sums to 1; taking it out entry by entry keeps them >= 0.
        phi = (alpha * p + (1 - alpha) * q - power) / (alpha * (1 - alpha))
        return phi, (q - power) / alpha

    return one("alpha_divergence", rule, alpha)


def cross_entropy() -> Divergence:
    """Cross-entropy against the labels at temperature 1, `-log softmax(z)[label]`.

    Returns:
      A `Divergence`; needs `labels`, reads no teacher, has no factor T^2.
    """
    return one("cross_entropy", None)


def z_loss() -> Divergence:
    """Squared log-normaliser of the student's logits at temperature 1, `logsumexp(z)^2`.

    Returns:
      A `Divergence`; reads no teacher, has no factor T^2.

    Reference:
      Chowdhery et al., PaLM: Scaling Language Modeling with Pathways, arXiv:2204.02311.
    """
    return one("z_loss", None)


def _product(p: Tensor, x: Tensor) -> Tensor:
    """`p x`, and 0 where p = 0, whatever x: `where` first, since 0 * nan = nan backwards."""
    return p * torch.where(p > 0, x, 0.0)


def _mixture(a: Tensor, b: Tensor, share: float) -> Tensor:
    """`(1 - share) a + share b`, above 0 so that its logarithm is finite."""
    return torch.lerp(a, b, share).clamp(min=torch.finfo(a.dtype).tiny)


def _finite(log_p: Tensor) -> Tensor:
    """Log-probabilities without -inf; those changed belong to p = 0, which hides them."""
    return log_p.clamp(min=-1e4)


def _between(name: str, knob: str, value: float, limit: str = "") -> None:
    if not 0 < value < 1:
        hint = f" Use {limit}, the limit at 0." if limit else ""
        raise ValueError(f"{name}: {knob} {value}; 0 < {knob} < 1 is expected.{hint}")
