"""Two small heads, every divergence, and how a strategy is differentiated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fkd.losses import head
from fkd.losses.head import Divergence, head_divergence


def hellinger(log_p: Tensor, log_q: Tensor) -> Tensor:
    return ((log_p / 2).exp() - (log_q / 2).exp()) ** 2


NAMED: list[Divergence] = [
    head.kl(),
    head.reverse_kl(),
    head.jsd(0.3),
    head.skew_kl(0.1),
    head.skew_reverse_kl(0.1),
    head.total_variation(),
    head.alpha_divergence(0.5),
    head.alpha_divergence(2.0),
    head.soft_cross_entropy(),
    head.cross_entropy(),
    head.z_loss(),
    0.7 * head.kl() + 0.2 * head.cross_entropy() + 0.01 * head.z_loss() + head.jsd(0.5),
]
MIXED = NAMED[-1]
ALL = [*NAMED, head.elementwise(hellinger)]


class Heads(NamedTuple):
    """Inputs of both heads: `[11, 5]` and `[11, 7]` hidden states, 23 entries."""

    student: Tensor
    weight: Tensor
    bias: Tensor
    teacher: Tensor
    teacher_weight: Tensor
    labels: Tensor


def heads(
    tokens: int = 11, vocab: int = 23, features: int = 5, dtype: torch.dtype = torch.float64
) -> Heads:
    g = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    labels = torch.randint(0, vocab, (tokens,), generator=g)
    return Heads(
        normal(tokens, features),
        normal(vocab, features),
        normal(vocab),
        normal(tokens, features + 2),
        normal(vocab, features + 2),
        labels,
    )


def call(given: Heads, divergence: Any, **options: Any) -> Callable[..., Tensor]:
    """The total as a function of the student's hidden states, weight and bias."""
    options = {"labels": given.labels, **options}

    def total(student: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return head_divergence(
            student,
            weight,
            given.teacher,
            given.teacher_weight,
            student_bias=bias,
            divergence=divergence,
            **options,
        ).total

    return total


def grads(fn: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    """The value and the gradient by every input, by autograd."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = fn(*leaves)
    return value.detach(), *torch.autograd.grad(value, leaves)


def func_grads(fn: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    """The same by `torch.func.grad_and_value`."""
    gradients, value = torch.func.grad_and_value(fn, argnums=tuple(range(len(inputs))))(*inputs)
    return value, *gradients


def close(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...], rtol: float = 1e-10) -> None:
    for x, y in zip(got, wanted, strict=True):
        assert x.dtype == y.dtype
        torch.testing.assert_close(x, y, rtol=rtol, atol=rtol * float(y.abs().max()))
