"""Laws of the mask of places: `where` `[batch, *space]` for a loss between feature maps."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from fkd.losses import attention_transfer, fsp, hcl, kdsvd
from tests.trees import tree_map

from .case import Case
from .laws import all_true, close, gradients, is_float, values
from .table import CASES

POISON = [float("nan"), float("inf"), float("-inf")]


def takes_places(case: Case) -> bool:
    where = inspect.signature(case.function).parameters.get("where")
    return where is not None and where.annotation == "Where | None"


def space(case: Case) -> tuple[int, ...] | None:
    """The space of a mask of places: that of all maps, which is None where they differ."""
    spaces = {tuple(x.shape[2:]) for x in case.make()}
    return spaces.pop() if len(spaces) == 1 else None


MAPS = [c for c in CASES if takes_places(c)]
PLACED = [c for c in MAPS if space(c)]
POOLED = ("hcl", "cat_kd")  # their cells depend on the size of the map
SETS = [c for c in PLACED if c.function.__name__ not in POOLED or c.id == "cat_kd unpooled"]


def over(rows: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", rows, ids=lambda c: c.id)


def mask_of(case: Case) -> Tensor:
    """At least one place of every sample and never all; the same ones if samples are related."""
    shape = (case.make()[0].shape[0], *(space(case) or ()))
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.6
    flat = mask.flatten(1)
    flat[:, 0], flat[:, -1] = True, False
    return flat[:1].expand_as(flat).reshape(shape).clone() if case.relational else mask


def at_places(case: Case, fn: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with `fn` on what has an entry for every place: of maps as `[batch, places,
    channels]`, of a keyword such as the weight of the places as `[batch, places]`."""
    args = case.make()
    shape = (args[0].shape[0], *(space(case) or ()))

    def of_map(x: Any) -> Any:
        return fn(x.flatten(2).mT).mT if is_float(x) else x

    def of_keyword(x: Any) -> Any:
        return fn(x.flatten(1)) if is_float(x) and tuple(x.shape) == shape else x

    return tuple(map(of_map, args)), {k: of_keyword(x) for k, x in case.kwargs.items()}


def spoiled(case: Case, mask: Tensor, value: float) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments, of their own shapes, with a value in the places that do not count."""
    args, kwargs = case.make(), dict(case.kwargs)
    bad = tuple(x.masked_fill(~mask.unsqueeze(1), value) if is_float(x) else x for x in args)
    fits = {k: is_float(x) and x.shape == mask.shape for k, x in kwargs.items()}
    kwargs = {k: x.masked_fill(~mask, value) if fits[k] else x for k, x in kwargs.items()}
    return bad, kwargs


def sample(tree: Any, b: int, size: int) -> Any:
    return tree_map(
        lambda x: x[b : b + 1] if isinstance(x, Tensor) and x.shape[:1] == (size,) else x, tree
    )


def test_the_losses_between_maps_take_a_mask_of_places() -> None:
    names = {c.function.__name__ for c in MAPS}
    assert len(names) >= 23, sorted(names)
    assert {c.function.__name__ for c in PLACED} == names - {"fsp", "kdsvd"}  # see below


@over(SETS)
def test_a_masked_map_is_the_map_of_its_other_places(case: Case) -> None:
    mask = mask_of(case)
    size = len(mask)
    bad, bad_kwargs = spoiled(case, mask, float("nan"))
    out, grads = gradients(case.loss, bad, {**bad_kwargs, "where": mask})
    for b in [slice(None)] if case.relational else range(size):
        counts = mask.flatten(1)[0 if case.relational else b]
        args, kwargs = at_places(case, lambda x, counts=counts: x[:, counts])
        if not case.relational:
            args, kwargs = sample(args, b, size), sample(kwargs, b, size)
        want, want_grads = gradients(case.loss, args, kwargs)
        close(out[b], want if case.relational else want[0], atol=1e-10)
        for grad, want_grad in zip(grads, want_grads, strict=True):
            of_place = grad.flatten(2)[b].movedim(-1, 0)
            other = want_grad if case.relational else want_grad[0]
            close(of_place[counts], other.movedim(-1, 0), atol=1e-10)


@over(PLACED)
@pytest.mark.parametrize("poison", POISON, ids=str)
def test_a_masked_place_has_no_value_and_no_gradient(case: Case, poison: float) -> None:
    mask = mask_of(case)
    bad, bad_kwargs = spoiled(case, mask, poison)
    out, grads = gradients(case.loss, bad, {**bad_kwargs, "where": mask})
    want, want_grads = gradients(case.loss, case.make(), {**case.kwargs, "where": mask})
    close(out, want)
    for grad, want_grad in zip(grads, want_grads, strict=True):
        close(grad, want_grad)
        assert (grad.movedim(1, -1)[~mask] == 0).all()


@over(PLACED)
def test_all_places_are_no_mask(case: Case) -> None:
    mask = torch.ones_like(mask_of(case))
    close(
        values(case.loss(*case.make(), **{**case.kwargs, "where": mask})),
        values(case.loss(*case.make(), **case.kwargs)),
    )


@over(PLACED)
def test_integers_are_a_mask_of_places(case: Case) -> None:
    mask, kwargs = mask_of(case), dict(case.kwargs)
    a = values(case.loss(*case.make(), **{**kwargs, "where": mask}))
    assert torch.equal(a, values(case.loss(*case.make(), **{**kwargs, "where": mask.long()})))


@over(PLACED)
def test_a_sample_without_places_is_a_sample_that_does_not_count(case: Case) -> None:
    samples = torch.ones(case.make()[0].shape[0], dtype=torch.bool)
    samples[0] = False
    mask = samples.reshape(-1, *[1] * len(space(case) or ())).expand_as(mask_of(case))
    bad, bad_kwargs = spoiled(case, mask, float("nan"))
    out, grads = gradients(case.loss, bad, {**bad_kwargs, "where": mask})
    want, want_grads = gradients(case.loss, case.make(), {**case.kwargs, "where": samples})
    close(out, want)
    assert out[0] == 0
    for grad, want_grad in zip(grads, want_grads, strict=True):
        close(grad, want_grad)


@over(PLACED)
def test_nothing_counts(case: Case) -> None:
    mask = torch.zeros_like(mask_of(case))
    bad, bad_kwargs = spoiled(case, mask, float("nan"))
    out, grads = gradients(case.loss, bad, {**bad_kwargs, "where": mask})
    assert (out == 0).all() and all((g == 0).all() for g in grads)


@pytest.mark.plain
@over(PLACED)
def test_a_mask_of_places_is_never_broadcast_nor_floating(case: Case) -> None:
    mask, args, name = mask_of(case), case.make(), case.function.__name__
    for wrong in (mask[..., :1], mask[:, None], mask[..., None], torch.cat([mask, mask], -1)):
        if wrong.shape != mask.shape:
            start = f"^{name}: where has shape {re.escape(str(tuple(wrong.shape)))}; "
            with pytest.raises(ValueError, match=start):
                case.loss(*args, **{**case.kwargs, "where": wrong})
    with pytest.raises(ValueError, match=f"^{name}: where has dtype torch.float32"):
        case.loss(*args, **{**case.kwargs, "where": mask.float()})


@pytest.mark.compile
@over(PLACED)
def test_compiled(case: Case) -> None:
    torch._dynamo.reset()
    mask = mask_of(case)
    args, kwargs = spoiled(case, mask, float("nan"))
    kwargs["where"] = mask
    compiled = torch.compile(case.loss, fullgraph=True, backend="aot_eager")
    for got, want in zip(
        gradients(compiled, args, kwargs), gradients(case.loss, args, kwargs), strict=True
    ):
        close(got, want)


@pytest.mark.plain
def test_maps_of_different_spaces_have_no_common_mask() -> None:
    features = {c.id for c in MAPS if all(x.ndim == 2 for x in c.make())}  # of one place
    differing = [c for c in MAPS if not (space(c) or "pooled" in c.id or c.id in features)]
    assert {"fsp", "gram", "kdsvd"} <= {c.function.__name__ for c in differing}
    for case in differing:
        args = case.make()
        mask = torch.ones_like(args[0][:, 0], dtype=torch.bool)
        with pytest.raises(ValueError, match=rf"^{case.function.__name__}: where has shape .*"):
            case.loss(*args, **{**case.kwargs, "where": mask})
        case.loss(*args, **{**case.kwargs, "where": all_true(case, args)})


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def test_a_cell_of_a_pyramid_is_the_mean_of_its_places_that_count() -> None:
    s, t = normal(2, 3, 4, 4), torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    mask = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[0, :2, :2], mask[:, 3, 3] = False, True  # a cell without a place, in the first sample
    want = torch.zeros(2, dtype=torch.float64)
    for b in range(2):
        squares = [s[b][:, mask[b]].square().mean()]
        for size in (2, 4):  # of a cell: levels 2 and 1
            cells = []
            for i in range(0, 4, size):
                for j in range(0, 4, size):
                    counts = mask[b, i : i + size, j : j + size]
                    cell = s[b, :, i : i + size, j : j + size][:, counts]
                    cells += [cell.mean(-1).square().mean()] if counts.any() else []
            squares.append(torch.stack(cells).mean())
        want[b] = (squares[0] + squares[1] / 2 + squares[2] / 4) / 1.75
    close(hcl(s, t, levels=(4, 2, 1), where=mask), want)


def test_two_layers_of_one_space_take_a_mask_of_places() -> None:
    s1, t1, s2, t2 = normal(4, 2, 5, 3, 4)
    s1, t1, s2, t2 = s1[:, :3], t1[:, :3], s2, t2
    mask = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(1)) < 0.6
    for loss in (fsp, kdsvd):
        bad = [x.masked_fill(~mask.unsqueeze(1), float("nan")) for x in (s1, t1, s2, t2)]
        out = loss(*bad, where=mask)
        for b in range(2):
            alone = [x[b][:, mask[b]][None] for x in (s1, t1, s2, t2)]
            close(out[b], loss(*alone)[0], rtol=1e-7)


def test_a_mask_of_pooled_places() -> None:
    s, t = normal(2, 3, 4, 6), normal(2, 5, 2, 3)
    mask = torch.tensor([[[True, False, True], [True, True, False]]] * 2)
    large = mask.repeat_interleave(2, 1).repeat_interleave(2, 2)
    bad = s.masked_fill(~large[:, None], float("nan")).requires_grad_()
    out = attention_transfer(bad, t, pool=True, where=mask)
    coarse = torch.nn.functional.avg_pool2d(s, 2)
    want = [attention_transfer(x[:, :, m], y[:, :, m]) for x, y, m in zip(
        coarse.split(1), t.split(1), mask, strict=True
    )]  # fmt: skip
    close(out, torch.cat(want))
    (grad,) = torch.autograd.grad(out.sum(), bad)
    assert grad.isfinite().all() and (grad.movedim(1, -1)[~large] == 0).all()
    with pytest.raises(ValueError, match=r"must have the same number of axes"):
        attention_transfer(s, t[:, :, 0], pool=True)
