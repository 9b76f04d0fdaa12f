"""Nested dicts, tuples and lists of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import optree
import torch
from torch import Tensor

T = TypeVar("T")


def map_tensors(fn: Callable[[Tensor], Any], tree: Any) -> Any:
    """The tree with `fn` applied to every tensor; everything else stays as it is.

    Mappings of any type become dicts; tuples, lists, named tuples and dataclasses that optree
    knows keep their type.
    """

    def leaf(value: Any) -> Any:
        if isinstance(value, Tensor):
            return fn(value)
        if isinstance(value, Mapping):  # one that optree does not know, such as a BatchEncoding
            return {key: map_tensors(fn, inner) for key, inner in value.items()}
        return value

    return optree.tree_map(leaf, tree, none_is_leaf=True)


def map_pairs(fn: Callable[[Any, Any], Any], tree: T, other: object) -> T:
    """The tree with `fn` applied to every leaf and the leaf of another tree at its place."""
    return cast(T, optree.tree_map(fn, cast(Any, tree), cast(Any, other)))


def stacked(trees: Sequence[Any]) -> Any:
    """Trees of one structure as one, whose tensors have a leading axis for them."""
    first, *others = trees
    return optree.tree_map(lambda *xs: torch.stack(xs), first, *others)


def merged(*trees: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Tensors by model and name, of all trees together."""
    every: dict[str, dict[str, Tensor]] = {}
    for tree in trees:
        for model, named in tree.items():
            every.setdefault(model, {}).update(named)
    return every


def sizes(tree: Mapping[str, Any]) -> str:
    """What a tree holds, in a few words for a `repr`: `{student: 12 tensors of 3,410 numbers}`."""
    return "{" + ", ".join(f"{name}: {size(part)}" for name, part in tree.items()) + "}"


def size(tree: Any) -> str:
    """How many tensors a tree holds, and how many numbers in all."""
    leaves: list[Any] = optree.tree_leaves(tree)
    tensors = [x for x in leaves if isinstance(x, Tensor)]
    return f"{len(tensors)} tensors of {sum(x.numel() for x in tensors):,} numbers"
