"""Tensors around captured graphs, whose every run writes its outputs where the last one did.

What is read after the next call of a graph has to be copied, and what stays at its address
from step to step is marked, so that it is read there and not copied into the graph first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast

import optree
import torch
from torch import Tensor

from fkd._base.trees import map_pairs
from fkd._base.types import Params

T = TypeVar("T")


def mark_static(tensors: Iterable[Tensor]) -> None:
    """Say that these stay where they are. Where they do not, a graph is captured again."""
    for x in tensors:
        torch._dynamo.mark_static_address(x)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]


def copied(tree: T) -> T:
    """A tree with tensors of its own, in one operation."""
    leaves, structure = optree.tree_flatten(cast(Any, tree))
    old = [x for x in leaves if isinstance(x, Tensor)]
    new = [torch.empty_like(x) for x in old]
    _copy(new, old)
    fresh = iter(new)
    return cast(
        T,
        optree.tree_unflatten(
            structure, [next(fresh) if isinstance(x, Tensor) else x for x in leaves]
        ),
    )


def copied_scalars(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of many tensors of one shape, in one operation for each dtype."""
    groups: dict[tuple[torch.dtype, torch.Size], list[str]] = {}
    for name, x in named.items():
        groups.setdefault((x.dtype, x.shape), []).append(name)
    copies: dict[str, Tensor] = {}
    for names in groups.values():
        copies.update(zip(names, torch.stack([named[n] for n in names]).unbind(), strict=True))
    return {name: copies[name] for name in named}


def copied_into(old: object, new: T) -> T:
    """A tree like `new` in the tensors of `old`, where these have its shapes and dtypes."""

    def kept(y: object, x: object) -> object:
        if x is y or not isinstance(y, Tensor):
            return y
        if isinstance(x, Tensor) and (x.shape, x.dtype) == (y.shape, y.dtype):
            return x.copy_(y)
        return y.clone()

    return map_pairs(kept, new, old)


def copy_into(old: Params, new: Params) -> None:
    """The tensors of `new` into those of `old`, which are the state's own."""
    pairs = [(old[m][n], x) for m, tensors in new.items() for n, x in tensors.items()]
    changed = [(x, y) for x, y in pairs if x is not y]
    _copy([x for x, _ in changed], [y for _, y in changed])


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, sources)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
