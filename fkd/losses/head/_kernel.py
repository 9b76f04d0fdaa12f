"""The Triton kernel: one program a row, two or three sweeps over its logits.

    sweep 1   both log-sum-exps, and online what needs no more: E_q[g] of reverse_kl, soft and
              hard cross-entropy, z-loss, entropies, argmax
    sweep 2   values and E_q[g] of jsd, the skewed divergences, total variation and alpha; left
              out if there is none of them, and no kl without a gradient
    sweep 3   the gradient, in place over the student's logits, and values of kl and reverse_kl,
              if no sweep 2 has them; left out without gradient

The values of kl and reverse_kl are sums of entries that are 0 where both agree: online, as a
difference of large numbers, a nearly converged student's would be what rounding has left.
Everything between load and store is float32 in registers. The formulas are those of `_named`.
"""

# pyright: basic, reportOperatorIssue=false, reportArgumentType=false
from __future__ import annotations

import triton
import triton.language as tl

from ._terms_kernel import finish, phi, picked, relative, sloped, transform


@triton.jit
def head_rows_kernel(
    student,  # [rows, vocab], overwritten by the gradient if GRADIENT
    teacher,  # [rows, vocab]
    labels,  # [rows] int64
    keep,  # [rows] int8
    scalars,  # [13]: T, scales and caps of both, four weights, four parameters
    values,  # [rows, columns] float32
    vocab,
    stride_student,
    stride_teacher,
    columns,
    K0: tl.constexpr,
    K1: tl.constexpr,
    K2: tl.constexpr,
    K3: tl.constexpr,
    COUNT: tl.constexpr,
    TEACHER: tl.constexpr,
    LABELS: tl.constexpr,
    SCALE_S: tl.constexpr,
    CAP_S: tl.constexpr,
    SCALE_T: tl.constexpr,
    CAP_T: tl.constexpr,
    REVERSE: tl.constexpr,
    SOFT: tl.constexpr,
    SECOND: tl.constexpr,
    METRICS: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    student += row * stride_student
    teacher += row * stride_teacher
    values += row * columns
    temperature = tl.load(scalars)
    scale_s, cap_s = tl.load(scalars + 1), tl.load(scalars + 2)
    scale_t, cap_t = tl.load(scalars + 3), tl.load(scalars + 4)
    w0, w1 = tl.load(scalars + 5), tl.load(scalars + 6)
    w2, w3 = tl.load(scalars + 7), tl.load(scalars + 8)
    a0, a1 = tl.load(scalars + 9), tl.load(scalars + 10)
    a2, a3 = tl.load(scalars + 11), tl.load(scalars + 12)
    inverse_t = 1.0 / temperature  # a division costs several instructions an entry
    kept = tl.load(keep + row).to(tl.float32)
    inf = float("inf")
    lanes = tl.arange(0, BLOCK)

    # Sweep 1. A prime marks what has the maximum of its row taken out.
    max_q, max_p, max_1 = -inf, -inf, -inf
    sum_q, sum_p, sum_1 = 0.0, 0.0, 0.0
    reverse, soft = 0.0, 0.0  # sum q'(y - t), sum p' y
    self_q, self_p = 0.0, 0.0  # sum q' y, sum p' t
    top_q, top_p = 0, 0
    for start in range(0, vocab, BLOCK):
        column = start + lanes
        inside = column < vocab
        z = transform(tl.load(student + column, inside, 0.0), scale_s, cap_s, SCALE_S, CAP_S)
        z = tl.where(inside, z, -inf)
        y = z * inverse_t
        block_max = tl.max(y, 0)
        if METRICS:
            top_q = tl.where(block_max > max_q, start + tl.argmax(y, 0), top_q)
        new_max = tl.maximum(max_q, block_max)
        safe = tl.where(new_max == -inf, 0.0, new_max)
        decay = tl.exp(max_q - safe)
        q = tl.exp(y - safe)
        sum_q = sum_q * decay + tl.sum(q, 0)
        max_q = new_max
        if LABELS:
            new_max = tl.maximum(max_1, tl.max(z, 0))
            safe = tl.where(new_max == -inf, 0.0, new_max)
            sum_1 = sum_1 * tl.exp(max_1 - safe) + tl.sum(tl.exp(z - safe), 0)
            max_1 = new_max
        if METRICS:
            self_q = self_q * decay + tl.sum(tl.where(q > 0, q * y, 0.0), 0)
        if TEACHER:
            t = transform(tl.load(teacher + column, inside, 0.0), scale_t, cap_t, SCALE_T, CAP_T)
            t = tl.where(inside, t, -inf) * inverse_t
            block_max = tl.max(t, 0)
            if METRICS:
                top_p = tl.where(block_max > max_p, start + tl.argmax(t, 0), top_p)
            new_max = tl.maximum(max_p, block_max)
            safe = tl.where(new_max == -inf, 0.0, new_max)
            fade = tl.exp(max_p - safe)
            p = tl.exp(t - safe)
            sum_p = sum_p * fade + tl.sum(p, 0)
            max_p = new_max
            if REVERSE:
                reverse = reverse * decay + tl.sum(tl.where(q > 0, q * (y - t), 0.0), 0)
            if SOFT:
                soft = soft * fade + tl.sum(tl.where(p > 0, p * y, 0.0), 0)
            if METRICS:
                self_p = self_p * fade + tl.sum(tl.where(p > 0, p * t, 0.0), 0)
    lse_q, lse_p, lse_1 = max_q + tl.log(sum_q), 0.0, 0.0
    if TEACHER:
        lse_p = max_p + tl.log(sum_p)
        reverse = reverse / sum_q + lse_p - lse_q
        soft = lse_q - soft / sum_p
    label, hard = 0, 0.0
    if LABELS:
        lse_1 = max_1 + tl.log(sum_1)
        label = tl.load(labels + row).to(tl.int32)
        hard = lse_1 - transform(tl.load(student + label), scale_s, cap_s, SCALE_S, CAP_S)

    # Sweep 2. `u` is d phi / d log q; E_q[g] is its sum over the vocabulary.
    v0, v1, v2, v3 = 0.0, 0.0, 0.0, 0.0
    u0, u1, u2, u3 = 0.0, 0.0, 0.0, 0.0
    if SECOND:
        for start in range(0, vocab, BLOCK):
            column = start + lanes
            inside = column < vocab
            z = transform(tl.load(student + column, inside, 0.0), scale_s, cap_s, SCALE_S, CAP_S)
            t = transform(tl.load(teacher + column, inside, 0.0), scale_t, cap_t, SCALE_T, CAP_T)
            log_q = tl.where(inside, z, -inf) * inverse_t - lse_q
            log_p = tl.where(inside, t, -inf) * inverse_t - lse_p
            q, p = tl.exp(log_q), tl.exp(log_p)
            v0 += tl.sum(phi(K0, a0, log_p, log_q, p, q), 0)
            u0 += tl.sum(sloped(K0, a0, log_p, log_q, p, q), 0)
            v1 += tl.sum(phi(K1, a1, log_p, log_q, p, q), 0)
            u1 += tl.sum(sloped(K1, a1, log_p, log_q, p, q), 0)
            v2 += tl.sum(phi(K2, a2, log_p, log_q, p, q), 0)
            u2 += tl.sum(sloped(K2, a2, log_p, log_q, p, q), 0)
            v3 += tl.sum(phi(K3, a3, log_p, log_q, p, q), 0)
            u3 += tl.sum(sloped(K3, a3, log_p, log_q, p, q), 0)
    # What sweep 1 knew; then values and factors with their power of T.
    v0, u0, f0 = finish(K0, v0, u0, w0, reverse, soft, hard, lse_1, temperature)
    v1, u1, f1 = finish(K1, v1, u1, w1, reverse, soft, hard, lse_1, temperature)
    v2, u2, f2 = finish(K2, v2, u2, w2, reverse, soft, hard, lse_1, temperature)
    v3, u3, f3 = finish(K3, v3, u3, w3, reverse, soft, hard, lse_1, temperature)
    excluded = kept == 0.0
    if METRICS:
        tl.store(values + COUNT, tl.where(excluded, 0.0, lse_q - self_q / sum_q))
        if TEACHER:
            tl.store(values + COUNT + 1, tl.where(excluded, 0.0, lse_p - self_p / sum_p))
            tl.store(values + COUNT + 2, tl.where(excluded | (top_q != top_p), 0.0, 1.0))

    # Sweep 3, from the end: the blocks read last are still in the cache.
    if GRADIENT:
        n0, n1, n2, n3 = 0.0, 0.0, 0.0, 0.0
        expected = f0 * u0 + f1 * u1 + f2 * u2 + f3 * u3
        onto_label, onto_q = 0.0, 0.0
        if LABELS:
            onto_label = picked(9, K0, w0, K1, w1, K2, w2, K3, w3)
            squares = picked(10, K0, w0, K1, w1, K2, w2, K3, w3)
            onto_q = onto_label + 2.0 * lse_1 * squares
        last = (vocab - 1) // BLOCK * BLOCK
        for back in range(0, vocab, BLOCK):
            column = last - back + lanes
            inside = column < vocab
            z = transform(tl.load(student + column, inside, 0.0), scale_s, cap_s, SCALE_S, CAP_S)
            log_q = tl.where(inside, z, -inf) * inverse_t - lse_q
            q = tl.exp(log_q)
            gradient = -expected * q
            if TEACHER:
                t = tl.load(teacher + column, inside, 0.0)
                t = transform(t, scale_t, cap_t, SCALE_T, CAP_T)
                log_p = tl.where(inside, t, -inf) * inverse_t - lse_p
                p = tl.exp(log_p)
                if not SECOND:
                    n0 += tl.sum(phi(K0, a0, log_p, log_q, p, q), 0)
                    n1 += tl.sum(phi(K1, a1, log_p, log_q, p, q), 0)
                    n2 += tl.sum(phi(K2, a2, log_p, log_q, p, q), 0)
                    n3 += tl.sum(phi(K3, a3, log_p, log_q, p, q), 0)
                gradient += f0 * sloped(K0, a0, log_p, log_q, p, q)
                gradient += f1 * sloped(K1, a1, log_p, log_q, p, q)
                gradient += f2 * sloped(K2, a2, log_p, log_q, p, q)
                gradient += f3 * sloped(K3, a3, log_p, log_q, p, q)
            if LABELS:
                gradient += onto_q * tl.exp(z - lse_1)
                gradient -= tl.where(column == label, onto_label, 0.0)
            if CAP_S:
                share = z / cap_s
                gradient *= 1.0 - share * share
            if SCALE_S:
                gradient *= scale_s
            gradient = tl.where(excluded, 0.0, gradient)
            tl.store(student + column, gradient.to(student.dtype.element_ty), inside)
        if not SECOND:
            square = temperature * temperature
            v0, v1 = relative(K0, n0 * square, v0), relative(K1, n1 * square, v1)
            v2, v3 = relative(K2, n2 * square, v2), relative(K3, n3 * square, v3)
    tl.store(values, tl.where(excluded, 0.0, v0))
    if COUNT > 1:
        tl.store(values + 1, tl.where(excluded, 0.0, v1))
    if COUNT > 2:
        tl.store(values + 2, tl.where(excluded, 0.0, v2))
    if COUNT > 3:
        tl.store(values + 3, tl.where(excluded, 0.0, v3))
