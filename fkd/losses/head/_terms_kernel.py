"""The divergences inside the kernel, chosen at compile time by their number in `KINDS`.

`sloped` covers every divergence between p and q, `phi` all but the cross-entropies.
"""

# pyright: basic, reportOperatorIssue=false, reportArgumentType=false
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def transform(z, scale, cap, SCALE: tl.constexpr, CAP: tl.constexpr):
    """`cap * tanh(scale * z / cap)` in float32, as far as they are given."""
    z = z.to(tl.float32)
    if SCALE:
        z = z * scale
    if CAP:
        z = cap * (1.0 - 2.0 / (tl.exp(2.0 * z / cap) + 1.0))
    return z


@triton.jit
def product(p, x):
    """`p x`, and 0 where p = 0."""
    return tl.where(p > 0, p * x, 0.0)


@triton.jit
def log_of(m):
    """`log m`, and 0 where m = 0."""
    return tl.log(tl.where(m > 0, m, 1.0))


@triton.jit
def power(a, log_p, log_q):
    """`p^a q^(1 - a)`, and 0 where both are 0."""
    dead = (log_p == -float("inf")) & (log_q == -float("inf"))
    exponent = tl.where(dead, 0.0, a * log_p + (1.0 - a) * log_q)
    return tl.where(dead, 0.0, tl.exp(exponent))


@triton.jit
def bend(x):
    """`exp(-x) - 1 + x` for |x| < 0.1, by its series, in which nothing cancels."""
    series = 1.0 - x / 5.0 * (1.0 - x / 6.0 * (1.0 - x / 7.0))
    series = 1.0 - x / 3.0 * (1.0 - x / 4.0 * series)
    return 0.5 * x * x * series


@triton.jit
def entropy(p, q, ratio):
    """`p log(p / q) + q - p` by the log of p / q: 0 where p and q are, and never negative."""
    near = tl.abs(ratio) < 0.1
    return tl.where(near, p * bend(tl.where(near, ratio, 0.0)), product(p, ratio) + (q - p))


@triton.jit
def phi(KIND: tl.constexpr, a, log_p, log_q, p, q):
    """What an entry adds to the value."""
    if KIND == 1:
        return entropy(p, q, log_p - log_q)
    elif KIND == 2:
        return entropy(q, p, log_q - log_p)
    elif KIND == 3:
        m = a * p + (1.0 - a) * q
        of_p, of_q = entropy(p, m, log_p - log_of(m)), entropy(q, m, log_q - log_of(m))
        return a * of_p + (1.0 - a) * of_q
    elif KIND == 4:
        m = a * p + (1.0 - a) * q
        return entropy(p, m, log_p - log_of(m))
    elif KIND == 5:
        m = a * q + (1.0 - a) * p
        return entropy(q, m, log_q - log_of(m))
    elif KIND == 6:
        return 0.5 * tl.abs(p - q)
    elif KIND == 7:
        return (power(a, log_p, log_q) - a * p - (1.0 - a) * q) / (a * (a - 1.0))
    else:
        return p * 0.0


@triton.jit
def sloped(KIND: tl.constexpr, a, log_p, log_q, p, q):
    """`d phi / d log q` of an entry, up to a multiple of q."""
    if KIND == 1 or KIND == 8:
        return -p
    elif KIND == 2:
        return product(q, log_q - log_p)
    elif KIND == 3:
        return (1.0 - a) * product(q, log_q - log_of(a * p + (1.0 - a) * q))
    elif KIND == 4:
        m = a * p + (1.0 - a) * q
        return -(1.0 - a) * p * q / tl.where(m > 0, m, 1.0)
    elif KIND == 5:
        m = a * q + (1.0 - a) * p
        return product(q, log_q - log_of(m)) - a * q * q / tl.where(m > 0, m, 1.0)
    elif KIND == 6:
        return 0.5 * tl.where(q > p, q, tl.where(q < p, -q, 0.0))
    elif KIND == 7:
        return -power(a, log_p, log_q) / a
    else:
        return p * 0.0


@triton.jit
def finish(KIND: tl.constexpr, value, slope, weight, reverse, soft, hard, lse, t):
    """Value, E_q[g] and factor of one divergence, from the sweep that knows them."""
    factor = weight * t
    if KIND == 1:
        return value * t * t, -1.0, factor
    elif KIND == 2:
        return value * t * t, reverse, factor
    elif KIND == 6:
        return value, slope, weight / t
    elif KIND == 8:
        return soft * t * t, -1.0, factor
    elif KIND == 9:
        return hard, 0.0, 0.0
    elif KIND == 10:
        return lse * lse, 0.0, 0.0
    elif KIND == 0:
        return 0.0, 0.0, 0.0
    else:
        return value * t * t, slope, factor


@triton.jit
def relative(KIND: tl.constexpr, value, known):
    """The value of a kl or reverse_kl; of anything else what is known."""
    if KIND == 1 or KIND == 2:
        return value
    else:
        return known


@triton.jit
def picked(
    KIND: tl.constexpr,
    K0: tl.constexpr,
    w0,
    K1: tl.constexpr,
    w1,
    K2: tl.constexpr,
    w2,
    K3: tl.constexpr,
    w3,
):
    """The sum of the weights of one kind of divergence."""
    total = w0 * 0.0
    if K0 == KIND:
        total += w0
    if K1 == KIND:
        total += w1
    if K2 == KIND:
        total += w2
    if K3 == KIND:
        total += w3
    return total
