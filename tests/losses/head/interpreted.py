"""Compare the fused strategy with the materialised one; prints "agree". Run as a module."""

from __future__ import annotations

import torch

from fkd.losses import head
from fkd.losses.head import head_divergence_and_metrics

from .inputs import Heads, heads

SUMS = [
    head.kl() + 0.5 * head.reverse_kl() + head.jsd(0.3) + 0.2 * head.cross_entropy(),
    head.skew_kl() + 0.5 * head.skew_reverse_kl() + head.total_variation() + 0.1 * head.z_loss(),
    head.alpha_divergence(0.5) + 0.5 * head.alpha_divergence(2.0) + head.soft_cross_entropy(),
]

OPTIONS = [
    {
        "temperature": torch.tensor(2.5),
        "student_logit_scale": 0.7,
        "teacher_logit_scale": 1.3,
        "student_softcap": 3.0,
        "teacher_softcap": torch.tensor(4.0),
    },
    {"where": torch.arange(5) % 3 > 0, "temperature": 2.0},
]


def results(given: Heads, divergence, strategy: str, device: str, **options):
    """Total, gradients and metrics."""
    given = Heads(*(x.to(device) for x in given))
    options = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    leaves = [x.clone().requires_grad_() for x in given[:3]]
    mean, metrics = head_divergence_and_metrics(
        leaves[0],
        leaves[1],
        given.teacher,
        given.teacher_weight,
        student_bias=leaves[2],
        divergence=divergence,
        labels=given.labels,
        strategy=strategy,
        chunk_size=3,
        **options,
    )
    mean.total.backward()
    return mean.total, *(x.grad for x in leaves), *metrics.values()


def main(device: str = "cpu") -> None:
    head_fused = __import__("fkd.losses.head._fused", fromlist=["_fused"])
    head_fused._MAX_BLOCK = 8  # several blocks a row, the last one ragged
    for options in OPTIONS:
        for divergence in SUMS:
            given = heads(tokens=5, vocab=13, dtype=torch.float32)
            given.labels[1] = -100
            got = results(given, divergence, "fused", device, **options)
            wanted = results(given, divergence, "materialized", device, **options)
            for x, y in zip(got, wanted, strict=True):
                torch.testing.assert_close(x, y, rtol=2e-4, atol=2e-5 * float(y.abs().max()))
    shut(device)
    half(device)
    func(device)
    converged(device)
    print("agree")


def shut(device: str) -> None:
    """Entries that a bias of -inf excludes from both models, whole blocks of them."""
    given = heads(tokens=5, vocab=13, dtype=torch.float32)
    given.labels.clamp_(max=7)
    bias = given.bias.masked_fill(torch.arange(13) >= 8, -torch.inf)
    closed = given._replace(bias=bias)
    teacher_bias = torch.zeros(13).masked_fill(torch.arange(13) >= 8, -torch.inf)
    for divergence in SUMS:
        got, wanted = (
            results(closed, divergence, strategy, device, teacher_bias=teacher_bias)
            for strategy in ("fused", "materialized")
        )
        for x, y in zip(got, wanted, strict=True):
            torch.testing.assert_close(x, y, rtol=2e-4, atol=2e-5 * float(y.abs().max()))


def half(device: str) -> None:
    """Logits stored in bfloat16: the gradient is written over them in bfloat16."""
    given = heads(tokens=5, vocab=13, dtype=torch.bfloat16)
    for options in ({}, {"logits_dtype": torch.bfloat16}):
        got = results(given, head.kl() + head.jsd(), "fused", device, **options)
        wanted = results(given, head.kl() + head.jsd(), "materialized", device)
        for x, y in zip(got[:4], wanted[:4], strict=True):
            torch.testing.assert_close(x, y, rtol=0.03, atol=0.03 * float(y.abs().max()))


def converged(device: str) -> None:
    """The value of a student whose logits differ by 1e-4 is not what rounding has left of it."""
    numbers = torch.Generator().manual_seed(0)
    hidden, weight, noise = (torch.randn(n, 16, generator=numbers) for n in (3, 97, 97))
    given = [hidden, weight + 2.5e-5 * noise, hidden, weight]
    named = [head.kl(), head.reverse_kl(), head.jsd(), head.skew_kl(0.4), head.kl() + head.jsd()]

    def total(divergence, gradient: bool, dtype: torch.dtype, strategy: str):
        leaves = [x.to(device, dtype) for x in given]
        leaves[0] = leaves[0].clone().requires_grad_(gradient)
        mean = head.head_divergence(*leaves, divergence=divergence, strategy=strategy)
        return mean.total.detach().double()

    for divergence in named:
        wanted = total(divergence, False, torch.float64, "materialized")
        for gradient in (True, False):
            got = total(divergence, gradient, torch.float32, "fused")
            torch.testing.assert_close(got, wanted, rtol=0.02, atol=0.0)


def func(device: str) -> None:
    """Inside torch.func.grad, and compiled."""
    given = Heads(*(x.to(device) for x in heads(tokens=5, vocab=13, dtype=torch.float32)))

    def total(student, weight, strategy):
        return head.head_divergence(
            student,
            weight,
            given.teacher,
            given.teacher_weight,
            divergence=SUMS[0],
            labels=given.labels,
            strategy=strategy,
            chunk_size=3,
        ).total

    slope = torch.func.grad(total, argnums=(0, 1))
    wanted = slope(given.student, given.weight, "materialized")
    compiled = torch.compile(slope, fullgraph=True, backend="aot_eager")
    for fn in (slope, compiled):
        for x, y in zip(fn(given.student, given.weight, "fused"), wanted, strict=True):
            torch.testing.assert_close(x, y, rtol=2e-4, atol=1e-5)


if __name__ == "__main__":
    main()
