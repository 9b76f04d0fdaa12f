"""`torch.func` over every loss: products with the Hessian, and gradients of several batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from tests.trees import tree_flatten, tree_unflatten

from .case import Case
from .laws import close, values
from .table import CASES
from .test_laws import PER_POSITION, checked, over

CHECKED = [bool(checked(c)) for c in CASES]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@over(CHECKED)
def test_products_with_the_hessian(case: Case) -> None:
    """Forward over reverse is reverse over reverse, and what the gradient does along a way."""
    args, chosen = list(case.make()), checked(case)
    leaves, spec = tree_flatten([args[i] for i in chosen])
    floating = [i for i, x in enumerate(leaves) if x.is_floating_point()]
    g = torch.Generator().manual_seed(5)
    way = [torch.randn(leaves[i].shape, generator=g, dtype=torch.float64) for i in floating]

    def total(t: Tensor, at: tuple[Tensor, ...]) -> Tensor:
        moved: list[Any] = list(leaves)
        for i, x, v in zip(floating, at, way, strict=True):
            moved[i] = x + t * v
        given = dict(zip(chosen, tree_unflatten(spec, moved), strict=True))
        full = [given.get(i, x) for i, x in enumerate(args)]
        return values(case.loss(*full, **case.kwargs)).sum()

    def slope(t: Tensor) -> tuple[Tensor, ...]:
        """The gradient at a point of the way."""
        return grad(lambda at: total(t, at))(tuple(leaves[i] for i in floating))

    zero, one, step = torch.tensor([0.0, 1.0, 1e-5], dtype=torch.float64)
    _, forward = jvp(slope, (zero,), (one,))
    reverse = grad(lambda at: grad(total)(zero, at))(tuple(leaves[i] for i in floating))
    for a, b, up, down in zip(forward, reverse, slope(step), slope(-step), strict=True):
        close(a, b, rtol=1e-6, atol=1e-8)
        close(a, (up - down) / (2 * step), rtol=2e-3, atol=2e-4)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@over(CHECKED, [not p for p in PER_POSITION])
def test_gradients_of_several_batches(case: Case) -> None:
    """`vmap(grad)` over batches, of losses that relate what is in a batch; for those with one value
    a position `test_vmap` does it over samples."""
    batches = [case.make(seed) for seed in (0, 1)]
    chosen = checked(case)
    flat = [tree_flatten([args[i] for i in chosen])[0] for args in batches]
    _, spec = tree_flatten([batches[0][i] for i in chosen])
    stacked = [torch.stack(pair) for pair in zip(*flat, strict=True)]

    def total(first: Tensor, *rest: Tensor) -> Tensor:
        given = dict(zip(chosen, tree_unflatten(spec, (first, *rest)), strict=True))
        full = [given.get(i, x) for i, x in enumerate(batches[0])]
        return values(case.loss(*full, **case.kwargs)).sum()

    out = vmap(grad(total))(*stacked)
    for row, xs in zip(out, flat, strict=True):
        close(row, grad(total)(*xs), rtol=1e-7, atol=1e-9)
