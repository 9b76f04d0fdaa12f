"""Attach gradients that the forward pass has already computed to the loss that they belong to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def carry(total: Tensor, inputs: list[Tensor], gradients: list[Tensor]) -> Tensor:
    """`total`, whose derivative by `inputs[i]` is `gradients[i]`.

    The backward pass multiplies by the cotangent, a scalar, whatever its value: reading it
    would wait for the device.

    Args:
      total: `[]`, without gradient.
      inputs: the tensors to differentiate by.
      gradients: one for each input, of its shape.

    Returns:
      `[]`.
    """
    if not inputs:
        return total
    if not torch.compiler.is_compiling():
        # One entry connects the gradients to an input, so that a second derivative is noticed.
        link = inputs[0].reshape(-1)[:1]
        return _Carry.apply(total, link, len(inputs), *inputs, *gradients)  # type: ignore[no-any-return]
    # A compiler cannot trace an autograd.Function inside torch.func.grad: it returned a gradient
    # of zero (torch 2.13). The product below has the same derivative and reads inputs once.
    for x, gradient in zip(inputs, gradients, strict=True):
        product = (x * gradient).sum(dtype=total.dtype)
        total = total + (product - product.detach())
    return total


class _Carry(torch.autograd.Function):
    """`forward(total, link, n, *inputs, *gradients) = total`."""

    @staticmethod
    def forward(total: Tensor, link: Tensor, n: int, *tensors: Tensor) -> Tensor:
        return total.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, link, n, *tensors = inputs
        ctx.save_for_backward(link, *tensors[n:])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        link, *gradients = ctx.saved_tensors
        scaled = [_Scale.apply(cotangents[0], gradient, link) for gradient in gradients]
        return None, None, None, *scaled, *(None for _ in gradients)


class _Scale(torch.autograd.Function):
    """`cotangent * gradient`, which is a constant to a second derivative: refused."""

    @staticmethod
    def forward(cotangent: Tensor, gradient: Tensor, link: Tensor) -> Tensor:
        return (cotangent * gradient).to(gradient.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del ctx, inputs, output

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "head_divergence: second derivatives are not kept by the chunked and fused "
            "strategies. Use strategy='materialized'."
        )
