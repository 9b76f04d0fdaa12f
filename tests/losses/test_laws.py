"""The battery: every loss of the table obeys every law it promises."""

from __future__ import annotations

import inspect
import re
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor

import fkd.losses
from tests.trees import tree_flatten, tree_leaves, tree_map, tree_unflatten

from .case import Case
from .laws import (
    RESHAPED,
    admitted,
    all_true,
    cast,
    close,
    expected,
    floats,
    gradients,
    is_float,
    knobs,
    leading,
    per_position,
    reshaped,
    spoil,
    take,
    takes_mask,
    temperatures,
    values,
)
from .table import BROKEN, CASES, NOT_LOSSES

HALVES = [torch.bfloat16, torch.float16]
POISON = [float("nan"), float("inf"), float("-inf")]


def over(*keep: bool | list[bool]) -> pytest.MarkDecorator:
    """Parametrise over the rows for which a law is promised."""
    rows = [c for c, *flags in zip(CASES, *keep, strict=True) if all(flags)] if keep else CASES
    return pytest.mark.parametrize("case", rows, ids=lambda c: c.id)


PAIRED = [
    len(args) > 1 and is_float(args[0]) and is_float(args[1]) and args[0].shape == args[1].shape
    for args in (c.make() for c in CASES)
]
MASKED = [c.positions > 0 and "where" not in c.kwargs for c in CASES]
POSITIONED = {c.function for c in CASES if c.positions > 0}
TAKES_MASK = [c.positions > 0 or (takes_mask(c) and c.function not in POSITIONED) for c in CASES]
PER_POSITION = [c.positions > 0 and not c.relational for c in CASES]


def mask_of(case: Case, args: tuple) -> Tensor:
    """About half of the positions, the first but not the last (a single one: none).

    A relational loss over more than one axis has the same positions in every row, so that
    what is left is a tensor again.
    """
    shape = leading(case, args)
    size = shape[-1:] if case.relational else shape
    mask = torch.rand(size, generator=torch.Generator().manual_seed(1)) < 0.6
    mask.view(-1)[0], mask.view(-1)[-1] = True, False
    return mask.expand(shape).clone()


def refused(case: Case, what: str) -> AbstractContextManager[object]:
    """Expect a ValueError in the name of the loss that says what it got."""
    return pytest.raises(ValueError, match="^" + re.escape(f"{case.function.__name__}: {what}"))


def positionwise(case: Case, out: Tensor, args: tuple) -> bool:
    return out.shape[: case.positions] == leading(case, args) and out.ndim >= case.positions > 0


def test_every_table_module_imports() -> None:
    assert not BROKEN, BROKEN


def test_ids_are_unique() -> None:
    ids = [c.id for c in CASES]
    assert len(ids) == len(set(ids)), sorted(i for i in ids if ids.count(i) > 1)


def test_every_public_loss_has_a_row() -> None:
    public = {n: f for n, f in vars(fkd.losses).items() if n[0] != "_" and inspect.isfunction(f)}
    covered = {c.function for c in CASES}
    missing = [n for n, f in public.items() if f not in covered and n not in NOT_LOSSES]
    assert not missing, f"no row in tests/losses/cases_*.py: {missing}"


@over()
def test_reference(case: Case) -> None:
    assert case.reference is not None or case.note, "a row without a reference says why"
    if case.reference is not None:
        args = case.make()
        out = values(case.loss(*args, **case.kwargs)).detach()
        want = torch.as_tensor(expected(case, args))
        close(out, want, rtol=case.rtol, atol=case.atol)


@over([p and c.zero_at_equality for p, c in zip(PAIRED, CASES, strict=True)])
def test_zero_at_equality(case: Case) -> None:
    student, _, *rest = case.make()
    out = values(case.loss(student, student.clone(), *rest, **case.kwargs))
    close(out, torch.zeros_like(out), atol=case.atol)


@over(PAIRED)
def test_finite_gradient_at_equality(case: Case) -> None:
    student, _, *rest = case.make()
    args = (student, student.clone(), *rest)
    out, grads = gradients(case.loss, args, dict(case.kwargs))
    assert out.isfinite().all()
    assert all(g.isfinite().all() for g in grads)


@over([c.nonnegative for c in CASES])
@pytest.mark.parametrize("seed", range(3))
def test_nonnegative(case: Case, seed: int) -> None:
    assert (values(case.loss(*case.make(seed), **case.kwargs)) >= -case.atol).all()


@over(PER_POSITION)
def test_one_value_per_position(case: Case) -> None:
    args = case.make()
    out = case.loss(*args, **case.kwargs)
    if isinstance(out, Tensor):
        assert out.shape == leading(case, args)


@over()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(case: Case, dtype: torch.dtype) -> None:
    out = values(case.loss(*cast(case.make(), dtype), **cast(dict(case.kwargs), dtype)))
    assert out.dtype == dtype


@over()
@pytest.mark.parametrize("half", HALVES, ids=str)
def test_half_precision(case: Case, half: torch.dtype) -> None:
    args, kwargs = cast(case.make(), half), cast(dict(case.kwargs), half)
    out = values(case.loss(*args, **kwargs))
    want = values(case.loss(*cast(args, torch.float64), **cast(kwargs, torch.float64)))
    assert out.dtype == torch.float32
    close(out.double(), want, rtol=case.half_rtol, atol=case.half_rtol)


def checked(case: Case) -> list[int]:
    """Positional arguments to gradcheck."""
    args = case.make()
    chosen = range(len(args)) if case.gradcheck is None else case.gradcheck
    return [i for i in chosen if any(map(is_float, tree_leaves(args[i])))]


@over([bool(checked(c)) for c in CASES])
def test_gradcheck(case: Case) -> None:
    args, chosen = list(case.make()), checked(case)
    leaves, spec = tree_flatten([args[i] for i in chosen])

    def run(*xs: Tensor) -> Tensor:
        given = dict(zip(chosen, tree_unflatten(spec, xs), strict=True))
        full = [given.get(i, x) for i, x in enumerate(args)]
        return values(case.loss(*full, **case.kwargs))

    inputs = [x.clone().requires_grad_(is_float(x)) for x in leaves]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


@over(MASKED)
@pytest.mark.parametrize("poison", POISON, ids=str)
def test_mask_equals_slicing(case: Case, poison: float) -> None:
    args, kwargs = case.make(), dict(case.kwargs)
    mask = mask_of(case, args)
    bad, bad_kwargs = per_position(case, args, kwargs, spoil(mask, poison))
    out, grads = gradients(case.loss, bad, {**bad_kwargs, "where": mask})
    sliced, sliced_kwargs = per_position(case, args, kwargs, take(mask, case.relational))
    if mask.any():
        want, want_grads = gradients(case.loss, sliced, sliced_kwargs)
    else:  # a single position, masked
        want, want_grads = torch.zeros(()), []
    if positionwise(case, out, args):
        assert (out[~mask] == 0).all()
        close(out[mask], want.reshape(out[mask].shape) if mask.any() else out[mask])
    else:
        close(out, want)
    compare_masked(case, args, mask, grads, want_grads)


def compare_masked(
    case: Case, args: tuple, mask: Tensor, grads: list[Tensor], want: list[Tensor]
) -> None:
    """Masked places have no gradient; the others have the gradient of the sliced batch."""
    shared = {id(x) for i in case.shared if isinstance(i, int) for x in tree_leaves(args[i])}
    for i, (x, grad) in enumerate(zip(floats(args), grads, strict=True)):
        assert grad.isfinite().all()
        if id(x) in shared or x.shape[: mask.ndim] != mask.shape:
            continue
        assert (grad[~mask] == 0).all()
        if want:
            close(grad[mask], want[i].reshape(grad[mask].shape))


@over([m and c.positions > 1 and c.padding for m, c in zip(MASKED, CASES, strict=True)])
def test_padded_equals_unpadded(case: Case) -> None:
    args, kwargs = case.make(), dict(case.kwargs)
    lead = leading(case, args)
    axis, length = len(lead) - 1, lead[-1] - 1
    mask = (torch.arange(lead[-1]) < length).expand(lead)
    bad, bad_kwargs = per_position(case, args, kwargs, spoil(mask, float("nan")))
    short, short_kwargs = per_position(case, args, kwargs, lambda x: x.narrow(axis, 0, length))
    out, grads = gradients(case.loss, bad, {**bad_kwargs, "where": mask})
    want, want_grads = gradients(case.loss, short, short_kwargs)
    close(out.narrow(axis, 0, length) if positionwise(case, out, args) else out, want)
    for x, grad, want_grad in zip(floats(args), grads, want_grads, strict=True):
        if x.shape[: len(lead)] == lead:
            close(grad.narrow(axis, 0, length), want_grad)


@over(MASKED)
def test_integer_mask_equals_bool_mask(case: Case) -> None:
    args = case.make()
    mask = mask_of(case, args)
    a = values(case.loss(*args, **{**case.kwargs, "where": mask}))
    b = values(case.loss(*args, **{**case.kwargs, "where": mask.long()}))
    assert torch.equal(a, b)


@over(MASKED)
def test_all_masked(case: Case) -> None:
    args, kwargs = case.make(), dict(case.kwargs)
    nothing = torch.zeros(leading(case, args), dtype=torch.bool)
    bad, bad_kwargs = per_position(case, args, kwargs, spoil(nothing, float("nan")))
    out, grads = gradients(case.loss, bad, {**bad_kwargs, "where": nothing})
    assert (out == 0).all()
    assert all((g == 0).all() for g in grads)


@over(MASKED)
def test_all_true_mask_changes_nothing(case: Case) -> None:
    args = case.make()
    everything = torch.ones(leading(case, args), dtype=torch.bool)
    a = values(case.loss(*args, **case.kwargs))
    b = values(case.loss(*args, **{**case.kwargs, "where": everything}))
    close(a, b)


@pytest.mark.plain
@over(TAKES_MASK)
def test_mask_is_never_broadcast(case: Case) -> None:
    args = case.make()
    right = all_true(case, args)
    case.loss(*args, **{**case.kwargs, "where": right})
    for wrong in (torch.cat([right, right], -1), right[..., :1], right[None], right[..., None]):
        if wrong.shape != right.shape:
            with refused(case, f"where has shape {tuple(wrong.shape)}"):
                case.loss(*args, **{**case.kwargs, "where": wrong})


@pytest.mark.plain
@over(TAKES_MASK)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_mask_is_never_floating(case: Case, dtype: torch.dtype) -> None:
    args = case.make()
    soft = torch.full_like(all_true(case, args), 0.3, dtype=dtype)
    with refused(case, f"where has dtype {dtype}"):
        case.loss(*args, **{**case.kwargs, "where": soft})


@pytest.mark.plain
@over([bool(temperatures(c)) for c in CASES])
@pytest.mark.parametrize("value", [0, 0.0, -1.0, float("nan")], ids=str)
def test_temperature_is_positive(case: Case, value: float) -> None:
    for name in temperatures(case):
        with refused(case, f"{name} {value}"):
            case.loss(*case.make(), **{**case.kwargs, name: value})


@pytest.mark.plain
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("change", RESHAPED)
@over()
def test_wrong_number_of_axes(case: Case, change: str) -> None:
    """What the annotations refuse, the loss refuses itself, in its own name."""
    assert admitted(case, case.make())
    for args in reshaped(case.make(), change):
        shapes = tree_map(lambda x: tuple(x.shape) if isinstance(x, Tensor) else x, args)
        try:
            case.loss(*args, **case.kwargs)
        except (ValueError, TypeError) as error:
            assert str(error).startswith(f"{case.function.__name__}: "), (shapes, error)
        else:
            assert admitted(case, args), shapes


@over([c.positions > 0 and c.permutes for c in CASES])
def test_permutation(case: Case) -> None:
    args, kwargs = case.make(), dict(case.kwargs)
    order = torch.randperm(leading(case, args)[0], generator=torch.Generator().manual_seed(2))
    moved, moved_kwargs = per_position(case, args, kwargs, lambda x: x[order])
    out = values(case.loss(*args, **kwargs))
    got = values(case.loss(*moved, **moved_kwargs))
    close(got, out[order] if positionwise(case, out, args) else out)


@over(PER_POSITION)
def test_vmap(case: Case) -> None:
    args, kwargs = case.make(), dict(case.kwargs)
    batched: list[Tensor] = []
    per_position(case, args, kwargs, lambda x: (batched.append(x), x)[1])

    def one(*rows: Tensor) -> Tensor:
        fill = iter(rows)
        row, row_kwargs = per_position(case, args, kwargs, lambda x: next(fill)[None])
        return values(case.loss(*row, **row_kwargs))[0]

    out = values(case.loss(*args, **kwargs))
    close(torch.vmap(one)(*batched), out)
    if is_float(args[0]):
        student = torch.vmap(torch.func.grad(lambda *rows: one(*rows).sum()))(*batched)
        close(student, gradients(case.loss, args, kwargs)[1][0], atol=1e-10)


@over([bool(knobs(c)) for c in CASES])
def test_numbers_may_be_tensors(case: Case) -> None:
    args = case.make()
    tensors = {k: torch.tensor(v, dtype=torch.float64) for k, v in knobs(case).items()}
    close(
        values(case.loss(*args, **{**case.kwargs, **tensors})),
        values(case.loss(*args, **case.kwargs)),
    )


@over()
def test_pure(case: Case) -> None:
    args, kwargs = case.make(), dict(case.kwargs)
    before = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, (args, kwargs))
    random = torch.get_rng_state()
    first, second = (tree_leaves(case.loss(*args, **kwargs)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(random, torch.get_rng_state())
    for old, new in zip(tree_leaves(before), tree_leaves((args, kwargs)), strict=True):
        assert torch.equal(old, new) if isinstance(old, Tensor) else old == new


@pytest.mark.compile
@over([c.compile for c in CASES])
def test_compiled(case: Case) -> None:
    torch._dynamo.reset()
    args, kwargs = case.make(), dict(case.kwargs)
    if case.positions and "where" not in kwargs:
        kwargs["where"] = mask_of(case, args)
    compiled = torch.compile(case.loss, fullgraph=True, backend="aot_eager")
    out, grads = gradients(case.loss, args, kwargs)
    got, got_grads = gradients(compiled, args, kwargs)
    close(got, out)
    for a, b in zip(got_grads, grads, strict=True):
        close(a, b)
