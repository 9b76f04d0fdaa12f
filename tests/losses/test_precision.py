"""The battery, continued: what a loss is given late in training, by other programs and settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trees import tree_flatten, tree_unflatten

from .case import Case
from .laws import cast, close, floats, gradients, leading, per_position, values
from .table import CASES
from .test_laws import MASKED, PAIRED, checked, over

FIRST = [next(iter(inspect.signature(c.function).parameters)) for c in CASES]
LOGITS = [name.endswith("_logits") for name in FIRST]
"""Rows whose first argument is logits."""

POSITIONED = [c.positions > 0 for c in CASES]


def single(case: Case) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments in float32."""
    return cast(case.make(), torch.float32), cast(dict(case.kwargs), torch.float32)


def relative(got: Tensor, want: Tensor) -> float:
    """The largest error, over the largest entry; of equal infinities it is 0."""
    same = got == want
    got, want = got.masked_fill(same, 1.0), want.masked_fill(same, 1.0)
    if same.all():
        return 0.0
    return float((got.double() - want.double()).abs().max() / want.double().abs().max().clamp(1e-6))


@over()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_changes_nothing(case: Case, dtype: torch.dtype) -> None:
    """Value and gradient inside `torch.autocast`, the gradient taken inside it as well."""
    args, kwargs = cast(case.make(), dtype), cast(dict(case.kwargs), dtype)
    want, want_grads = gradients(case.loss, args, kwargs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, grads = gradients(case.loss, args, kwargs)
    assert got.dtype == want.dtype
    assert relative(got, want) < 2e-5
    for a, b in zip(grads, want_grads, strict=True):
        assert a.dtype == b.dtype
        assert relative(a, b) < (1e-4 if dtype == torch.float32 else 1e-2)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@over()
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_default_dtype_changes_nothing(case: Case, dtype: torch.dtype) -> None:
    args, kwargs = single(case)
    want, want_grads = gradients(case.loss, args, kwargs)
    with default_dtype(dtype):
        got, grads = gradients(case.loss, args, kwargs)
    assert got.dtype == want.dtype
    assert torch.equal(got, want)
    assert all(map(torch.equal, grads, want_grads))


@over([len(floats(c.make()[:2])) > 1 for c in CASES])
@pytest.mark.parametrize("wide", [0, 1], ids=["student", "teacher"])
def test_mixed_dtypes(case: Case, wide: int) -> None:
    """One side in float64 beside float32: as if all were float64."""
    args, kwargs = single(case)
    want, want_grads = gradients(case.loss, cast(args, torch.float64), cast(kwargs, torch.float64))
    mixed = tuple(cast(x, torch.float64) if i == wide else x for i, x in enumerate(args))
    got, grads = gradients(case.loss, mixed, kwargs)
    close(got.double(), want, rtol=1e-4, atol=1e-5)
    for a, b in zip(grads, want_grads, strict=True):
        assert relative(a, b) < 1e-3


@over([p and a for p, a in zip(PAIRED, LOGITS, strict=True)])
@pytest.mark.parametrize("gap", [10.0, 20.0, 40.0, 90.0])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_confident_models(case: Case, gap: float, noise: float) -> None:
    """Fine-tuned models that agree, one class far above the others: finite in float32."""
    (student, teacher, *rest), kwargs = single(case)
    teacher = teacher + torch.zeros_like(teacher).scatter(-1, teacher.argmax(-1, keepdim=True), gap)
    near = teacher + noise * student if noise else teacher.clone()
    out, grads = gradients(case.loss, (near, teacher, *rest), kwargs)
    assert out.isfinite().all()
    assert all(g.isfinite().all() for g in grads)


@over([p and not a for p, a in zip(PAIRED, LOGITS, strict=True)])
@pytest.mark.parametrize("scale", [1e-8, 1e6])
def test_finite_at_every_scale(case: Case, scale: float) -> None:
    """Very small and very large inputs: a finite gradient in float32."""
    (student, teacher, *rest), kwargs = single(case)
    out, grads = gradients(case.loss, (scale * student, scale * teacher, *rest), kwargs)
    assert out.isfinite().all()
    assert all(g.isfinite().all() for g in grads)


@over(POSITIONED)
def test_empty_batch(case: Case) -> None:
    """A batch of no samples: no values, or zero, and an empty gradient."""
    args, kwargs = per_position(case, case.make(), dict(case.kwargs), lambda x: x[:0])
    out, grads = gradients(case.loss, args, kwargs)
    assert (out == 0).all()
    assert all((g == 0).all() for g in grads)


@over([m and c.positions > 0 for m, c in zip(MASKED, CASES, strict=True)])
def test_empty_batch_with_a_mask(case: Case) -> None:
    args, kwargs = per_position(case, case.make(), dict(case.kwargs), lambda x: x[:0])
    nothing = torch.ones(leading(case, args), dtype=torch.bool)
    out, _ = gradients(case.loss, args, {**kwargs, "where": nothing})
    assert (out == 0).all()


def directional(run: Callable[..., Tensor], inputs: list[Tensor], way: list[Tensor]) -> Tensor:
    """The derivative of the sum along `way`, by the backward pass."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = run(*leaves).sum()
    grads = torch.autograd.grad(out, leaves, allow_unused=True, materialize_grads=True)
    return torch.stack([(g * v).sum() for g, v in zip(grads, way, strict=True)]).sum()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@over([bool(checked(c)) for c in CASES])
def test_forward_mode(case: Case) -> None:
    """`torch.func.jvp` agrees with the gradient."""
    args, chosen = list(case.make()), checked(case)
    leaves, spec = tree_flatten([args[i] for i in chosen])
    generator = torch.Generator().manual_seed(3)

    def run(*xs: Tensor) -> Tensor:
        moved = dict(zip(chosen, tree_unflatten(spec, xs), strict=True))
        return values(case.loss(*[moved.get(i, x) for i, x in enumerate(args)], **case.kwargs))

    way = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in leaves]
    _, slope = torch.func.jvp(run, tuple(leaves), tuple(way))
    close(slope.sum(), directional(run, leaves, way), rtol=1e-6, atol=1e-8)
