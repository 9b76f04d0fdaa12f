"""The matrix products of a head, in the precision that was asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from ._problem import Head

_HAS_OUT_DTYPE = "dtype" in torch.ops.aten.mm.overloads()


def widens(x: Tensor) -> bool:
    """Whether products of `x` can be returned in float32 without converting their operands.

    Not for float16: the gradient of a nearly converged row is below its smallest number.
    """
    return _HAS_OUT_DTYPE and x.is_cuda and x.dtype == torch.bfloat16


def prepared(head: Head, dtype: torch.dtype, operand_dtype: torch.dtype | None) -> Head:
    """The head with operands, rounded to `operand_dtype`, whose product can be had in `dtype`."""
    head = rounded(head, operand_dtype)
    if head.hidden.dtype == head.weight.dtype:
        if head.hidden.dtype == dtype or (dtype == torch.float32 and widens(head.hidden)):
            return head
    return head._replace(hidden=head.hidden.to(dtype), weight=head.weight.to(dtype))


def rounded(head: Head, dtype: torch.dtype | None) -> Head:
    """The head with its operands in a dtype; None leaves them."""
    if dtype is None:
        return head
    return head._replace(hidden=head.hidden.to(dtype), weight=head.weight.to(dtype))


def logits(head: Head, hidden: Tensor, dtype: torch.dtype, buffer: Tensor | None) -> Tensor:
    """`hidden @ weight.T + bias` in `dtype`, written to a buffer `[>= tokens, vocab]` if given."""
    weight = head.weight.t()
    if hidden.dtype != dtype:
        product = torch.mm(hidden, weight, out_dtype=dtype)
    elif buffer is None:
        product = hidden @ weight
    else:
        product = buffer[: hidden.shape[0]].addmm_(hidden, weight, beta=0)
    return product if head.bias is None else product.add_(head.bias.to(dtype))


def add_outer(total: Tensor, gradient: Tensor, hidden: Tensor) -> None:
    """`total += gradient.T @ hidden`, summed in the dtype of the total."""
    if gradient.dtype == total.dtype == hidden.dtype:
        total.addmm_(gradient.t(), hidden)
    else:
        torch.ops.fkd.head_add_outer(total, gradient, hidden)


@torch.library.custom_op(
    "fkd::head_add_outer",
    mutates_args=("total",),
    # Written out, since the run-time type check hides the annotations.
    schema="(Tensor(a0!) total, Tensor gradient, Tensor hidden) -> ()",
)
def _add_outer(total: Tensor, gradient: Tensor, hidden: Tensor) -> None:
    if total.dtype == torch.float32 and gradient.dtype == hidden.dtype and widens(hidden):
        torch.addmm(total, gradient.t(), hidden, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(gradient.t().to(total.dtype), hidden.to(total.dtype))


@_add_outer.register_fake
def _(total: Tensor, gradient: Tensor, hidden: Tensor) -> None:
    del total, gradient, hidden
