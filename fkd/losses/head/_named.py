"""The named divergences. p is the teacher's distribution, q the student's; 0 log 0 = 0.

Every slope is `d phi / d log q` without its multiples of q: they cancel in q (g - E_q[g]).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._divergence import Divergence, one


def kl() -> Divergence:
    """KL divergence of the student from the teacher, `sum_v p (log p - log q)`.

    Returns:
      A `Divergence`: `fkd.losses.kl` of the logits, T^2 included.

    Reference:
      Hinton et al., Distilling the Knowledge in a Neural Network, arXiv:1503.02531.
    """
    return one("kl", _kl, lambda log_p, log_q, p, q: -p)


def soft_cross_entropy() -> Divergence:
    """Cross-entropy against the teacher, `-sum_v p log q`: `kl` plus the teacher's entropy.

    Returns:
      A `Divergence`; T^2 included.

    Reference:
      Hinton et al., Distilling the Knowledge in a Neural Network, arXiv:1503.02531.
    """
    return one(
        "soft_cross_entropy",
        lambda log_p, log_q, p, q: -_product(p, log_q),
        lambda log_p, log_q, p, q: -p,
    )


def reverse_kl() -> Divergence:
    """KL divergence of the teacher from the student, `sum_v q (log q - log p)`.

    Returns:
      A `Divergence`; T^2 included. Infinite where the teacher rules out what the student does
      not: restrict both to a common vocabulary first.

    Reference:
      Gu et al., MiniLLM: Knowledge Distillation of Large Language Models, arXiv:2306.08543.
    """
    return one("reverse_kl", _reverse_kl, _reverse_kl)


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

    def phi(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> Tensor:
        log_m = _log(beta * p + (1 - beta) * q)
        return beta * _product(p, log_p - log_m) + (1 - beta) * _product(q, log_q - log_m)

    def slope(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> Tensor:
        return (1 - beta) * _product(q, log_q - _log(beta * p + (1 - beta) * q))

    return one("jsd", phi, slope, beta)


def skew_kl(skew: float = 0.1) -> Divergence:
    """Skewed KL divergence, `KL(p || skew p + (1 - skew) q)`.

    Args:
      skew: the teacher's share of the mixture, 0 <= skew < 1; 0 is `kl`.

    Returns:
      A `Divergence`; T^2 included.

    Reference:
      Ko et al., DistiLLM: Towards Streamlined Distillation for Large Language Models,
      arXiv:2402.03898.
    """
    _between("skew_kl", "skew", skew, closed_below=True)

    def phi(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> Tensor:
        return _product(p, log_p - _log_mixture(log_p, log_q, skew))

    def slope(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> Tensor:
        m = skew * p + (1 - skew) * q
        return -(1 - skew) * p * q / torch.where(m > 0, m, 1.0) if skew else -p

    return one("skew_kl", phi, slope, skew)


def skew_reverse_kl(skew: float = 0.1) -> Divergence:
    """Skewed reverse KL divergence, `KL(q || skew q + (1 - skew) p)`.

    Args:
      skew: the student's share of the mixture, 0 <= skew < 1; 0 is `reverse_kl`.

    Returns:
      A `Divergence`; T^2 included.

    Reference:
      Ko et al., DistiLLM: Towards Streamlined Distillation for Large Language Models,
      arXiv:2402.03898.
    """
    _between("skew_reverse_kl", "skew", skew, closed_below=True)

    def phi(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> Tensor:
        return _product(q, log_q - _log_mixture(log_q, log_p, skew))

    def slope(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> Tensor:
        m = skew * q + (1 - skew) * p
        return phi(log_p, log_q, p, q) - skew * q * q / torch.where(m > 0, m, 1.0)

    return one("skew_reverse_kl", phi, slope, skew)


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
        lambda log_p, log_q, p, q: 0.5 * (p - q).abs(),
        lambda log_p, log_q, p, q: 0.5 * q * torch.sign(q - p),
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

    def power(log_p: Tensor, log_q: Tensor) -> Tensor:
        exponent = alpha * log_p + (1 - alpha) * log_q
        dead = torch.isneginf(log_p) & torch.isneginf(log_q)
        return torch.exp(torch.where(dead, 0.0, exponent)).masked_fill(dead, 0.0)

    # Subtracting alpha p + (1 - alpha) q, which sums to 1, keeps every summand >= 0.
    return one(
        "alpha_divergence",
        lambda log_p, log_q, p, q: (
            (power(log_p, log_q) - alpha * p - (1 - alpha) * q) / (alpha * (alpha - 1))
        ),
        lambda log_p, log_q, p, q: -power(log_p, log_q) / alpha,
        alpha,
    )


def cross_entropy() -> Divergence:
    """Cross-entropy against the labels at temperature 1, `-log softmax(z)[label]`.

    Returns:
      A `Divergence`; needs `labels`, reads no teacher, has no factor T^2.
    """
    return one("cross_entropy", None, None)


def z_loss() -> Divergence:
    """Squared log-normaliser of the student's logits at temperature 1, `logsumexp(z)^2`.

    Returns:
      A `Divergence`; reads no teacher, has no factor T^2.

    Reference:
      Chowdhery et al., PaLM: Scaling Language Modeling with Pathways, arXiv:2204.02311.
    """
    return one("z_loss", None, None)


def _kl(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> Tensor:
    return _product(p, log_p - log_q)


def _reverse_kl(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> Tensor:
    return _product(q, log_q - log_p)


def _product(p: Tensor, x: Tensor) -> Tensor:
    """`p x`, and 0 where p = 0, whatever x: `where` first, since 0 * nan = nan backwards."""
    return p * torch.where(p > 0, x, 0.0)


def _log(m: Tensor) -> Tensor:
    """`log m`, and 0 where m = 0: both its summands are 0 there."""
    return torch.log(torch.where(m > 0, m, 1.0))


def _log_mixture(log_a: Tensor, log_b: Tensor, skew: float) -> Tensor:
    """`log(skew a + (1 - skew) b)`; `log b` for skew = 0, which keeps its infinities."""
    return _log(skew * log_a.exp() + (1 - skew) * log_b.exp()) if skew else log_b


def _between(name: str, knob: str, value: float, closed_below: bool = False) -> None:
    if not (0 < value < 1 or (closed_below and value == 0)):
        expected = f"0 {'<=' if closed_below else '<'} {knob} < 1"
        raise ValueError(f"{name}: {knob} {value}; {expected} is expected.")
