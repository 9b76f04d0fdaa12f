"""The divergences inside the kernel, chosen at compile time by their number in `KINDS`.

`sloped` covers every divergence between p and q, `phi` only those that take a second sweep.
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
def phi(KIND: tl.constexpr, a, log_p, log_q, p, q):
    """What an entry adds to the value."""
    if KIND == 3:
        log_m = log_of(a * p + (1.0 - a) * q)
        return a * product(p, log_p - log_m) + (1.0 - a) * product(q, log_q - log_m)
    elif KIND == 4:
        return product(p, log_p - log_of(a * p + (1.0 - a) * q))
    elif KIND == 5:
        return product(q, log_q - log_of(a * q + (1.0 - a) * p))
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
def finish(KIND: tl.constexpr, value, slope, weight, forward, reverse, soft, hard, lse, t):
    """Value, E_q[g] and factor of one divergence, from the sweep that knows them."""
    factor = weight * t
    if KIND == 1:
        return forward * t * t, -1.0, factor
    elif KIND == 2:
        return reverse * t * t, reverse, factor
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
