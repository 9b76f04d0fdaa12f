"""What the battery of laws needs: calls, values, gradients, masks and slices of a case."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any, get_type_hints

import numpy as np
import torch
from jaxtyping import jaxtyped
from torch import Tensor

from fkd._base.mean import Mean
from tests.trees import tree_leaves, tree_map

from .case import Case

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


def values(out: Any) -> Tensor:
    """The values of a loss: of a `Mean` its value, of (values, state) the values."""
    if isinstance(out, Mean):
        return out.value
    return values(out[0]) if isinstance(out, tuple) else out


def numpy(tree: Any) -> Any:
    """Tensors of a tree as arrays."""
    return tree_map(lambda x: x.detach().numpy() if isinstance(x, Tensor) else x, tree)


def expected(case: Case, args: Args) -> np.ndarray:
    """The value by the reference."""
    assert case.reference is not None
    out = case.reference(*numpy(args), **numpy(dict(case.kwargs)))
    if isinstance(out, tuple):
        total, count = out
        return np.asarray(total / count if count else 0.0)
    return np.asarray(out)


def is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def floats(args: Args) -> list[Tensor]:
    """The floating tensors among the positional arguments."""
    return [x for x in tree_leaves(args) if is_float(x)]


def tracked(args: Args) -> Args:
    """Copies that require a gradient."""
    return tree_map(lambda x: x.detach().clone().requires_grad_() if is_float(x) else x, args)


def cast(tree: Any, dtype: torch.dtype) -> Any:
    """Floating tensors in another dtype; 0-d knobs stay as they are."""
    return tree_map(lambda x: x.to(dtype) if is_float(x) and x.ndim else x, tree)


def gradients(run: Callable[..., Any], args: Args, kwargs: Kwargs) -> tuple[Tensor, list[Tensor]]:
    """Values, and the gradient of their sum for every floating argument (0 if unused)."""
    args = tracked(args)
    out = values(run(*args, **kwargs))
    inputs = floats(args)
    if not out.requires_grad:
        return out, [torch.zeros_like(x) for x in inputs]
    grads = torch.autograd.grad(out.sum(), inputs, allow_unused=True, materialize_grads=True)
    return out.detach(), list(grads)


def leading(case: Case, args: Args) -> torch.Size:
    """The shape that `where` has."""
    return tree_leaves(args[0])[0].shape[: case.positions]


def per_position(case: Case, args: Args, kwargs: Kwargs, fn: Callable[[Tensor], Tensor]):
    """Apply `fn` to every tensor that has one entry a position."""
    lead = leading(case, args)

    def apply(key: int | str, tree: Any) -> Any:
        if key in case.shared:
            return tree
        return tree_map(
            lambda x: fn(x) if isinstance(x, Tensor) and x.shape[: len(lead)] == lead else x, tree
        )

    return (
        tuple(apply(i, x) for i, x in enumerate(args)),
        {k: apply(k, x) for k, x in kwargs.items()},
    )


def spoil(mask: Tensor, value: float) -> Callable[[Tensor], Tensor]:
    """Put `value` (-100 in integer tensors) where the mask is False."""

    def apply(x: Tensor) -> Tensor:
        hole = ~mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
        if x.dtype == torch.bool:
            return x
        return x.masked_fill(hole, value if x.is_floating_point() else -100)

    return apply


def take(mask: Tensor, relational: bool) -> Callable[[Tensor], Tensor]:
    """The positions that count, as a batch of the same number of axes.

    Positions of a relational loss stay in their rows (the mask is the same in every row).
    """
    if relational:
        keep = mask.reshape(-1, mask.shape[-1])[0].argwhere()[:, 0]
        return lambda x: x.index_select(mask.ndim - 1, keep)
    return lambda x: x[mask].reshape((1,) * (mask.ndim - 1) + (-1, *x.shape[mask.ndim :]))


# Wrong numbers of axes. Of a tensor with too few axes for a change there is no such change.
RESHAPED: dict[str, Callable[[Tensor], Tensor]] = {
    "one fewer": lambda x: x[0],
    "two fewer": lambda x: x[0][0],
    "one more": lambda x: x[None],
    "flat": lambda x: x.flatten(),
    "0-d": lambda x: x.flatten()[0],
}


def reshaped(args: Args, change: str) -> Iterator[Args]:
    """The arguments with the student's, the teacher's, both, and all of them reshaped."""

    def apply(x: Any) -> Any:
        try:
            return RESHAPED[change](x) if isinstance(x, Tensor) else x
        except IndexError:
            return x

    for which in ({0}, {1}, {0, 1}, set(range(len(args)))):
        new = tuple(tree_map(apply, x) if i in which else x for i, x in enumerate(args))
        if any(a is not b for a, b in zip(tree_leaves(new), tree_leaves(args), strict=True)):
            yield new


def admitted(case: Case, args: Args, **kwargs: Any) -> bool:
    """Whether the annotations of the loss admit the axes of these arguments, by name."""
    hints = get_type_hints(case.function)
    names = list(inspect.signature(case.function).parameters)[: len(args)]
    given = {**dict(zip(names, args, strict=True)), **case.kwargs, **kwargs}
    with jaxtyped("context"):
        return all(isinstance(x, hints[k]) for k, x in given.items() if isinstance(x, Tensor))


def knobs(case: Case) -> dict[str, float]:
    """Float keyword arguments of the case: given, or by default."""
    parameters = inspect.signature(case.loss).parameters.values()
    found = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    found.update(case.kwargs)
    fixed = {"eps", *case.static}
    return {k: v for k, v in found.items() if type(v) is float and k not in fixed}


def takes_mask(case: Case) -> bool:
    """Whether the loss takes a `where`."""
    return "where" in inspect.signature(case.function).parameters


def all_true(case: Case, args: Args) -> Tensor:
    """A mask of the shape that `where` has, all True.

    Of a row without positions (the mask has axes that are not the leading ones): some axes of
    the student, as the annotation of `where` admits them.
    """
    if case.positions:
        return torch.ones(leading(case, args), dtype=torch.bool)
    axes = tree_leaves(args[0])[0].shape
    shapes = [shape for n in range(len(axes) + 1) for shape in combinations(axes, n)]
    masks = (torch.ones(shape, dtype=torch.bool) for shape in shapes)
    return next(mask for mask in masks if admitted(case, args, where=mask))


def temperatures(case: Case) -> list[str]:
    """The names of the temperatures that the loss takes."""
    return [k for k in inspect.signature(case.function).parameters if k.endswith("temperature")]


def close(got: Any, want: Any, *, rtol: float = 1e-9, atol: float = 1e-11) -> None:
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol, check_dtype=False)
