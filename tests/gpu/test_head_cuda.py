"""The fused head on the hardware that it is written for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fkd.losses import head
from fkd.losses.head import head_divergence

pytestmark = pytest.mark.gpu


def inputs(
    tokens: int = 300, vocab: int = 5003, features: int = 256, noise: float = 1.0
) -> list[Tensor]:
    """Hidden states and weights of student and teacher, in float64 with values of bfloat16."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    teacher, weight = normal(tokens, features), 3 * normal(vocab, features) / features**0.5
    student = teacher + noise * normal(tokens, features)
    return [x.bfloat16().double().cuda() for x in (student, weight, teacher, weight)]


def gradients(given: list[Tensor], dtype: torch.dtype, **options) -> list[Tensor]:
    leaves = [x.to(dtype).requires_grad_(i < 2) for i, x in enumerate(given)]
    value = head_divergence(*leaves, **options).total
    return [value.detach().double(), *(g.double() for g in torch.autograd.grad(value, leaves[:2]))]


MIXED = 0.7 * head.kl() + 0.2 * head.reverse_kl() + 0.1 * head.jsd(0.5)


@pytest.mark.parametrize(
    "divergence",
    [head.kl(), head.reverse_kl(), head.jsd(0.3), head.skew_kl(0.1), head.total_variation(), MIXED],
    ids=repr,
)
def test_fused_is_near_float64(divergence):
    given = inputs()
    expected = gradients(given, torch.float64, divergence=divergence, strategy="materialized")
    found = gradients(
        given, torch.bfloat16, divergence=divergence, strategy="fused", chunk_size=128
    )
    for got, exact in zip(found, expected, strict=True):
        assert float((got - exact).norm() / exact.norm()) < 1e-2


def test_the_gradient_of_a_nearly_converged_student():
    given = inputs(noise=0.05)
    exact = gradients(given, torch.float64, divergence=head.kl(), strategy="materialized")[2]
    found = gradients(given, torch.float32, divergence=head.kl(), strategy="fused")[2]
    assert float((found - exact).norm() / exact.norm()) < 1e-3


def test_the_fused_head_does_not_wait_for_the_device():
    given = inputs()
    options = {"divergence": head.kl(), "strategy": "fused", "chunk_size": 128}
    gradients(given, torch.bfloat16, **options)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        gradients(given, torch.bfloat16, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
