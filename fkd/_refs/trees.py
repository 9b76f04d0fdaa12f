"""What refs hold between parentheses and brackets: nested values, some of which are refs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import optree
from torch import Tensor

from .syntax import NEVER_TRAINED, Syntax, is_trained

_NAMESPACE = "fkd"

_register: Any = optree.register_pytree_node  # typed for collections, which a slice is not
_register(
    slice,
    lambda ends: ((ends.start, ends.stop, ends.step), None),
    lambda _, ends: slice(*ends),
    namespace=_NAMESPACE,
)


def leaves(tree: Any) -> list[Any]:
    """Everything in nested tuples, lists, dicts and slices, None included."""
    return optree.tree_leaves(tree, none_is_leaf=True, namespace=_NAMESPACE)


def mapped(fn: Callable[[Any], Any], tree: Any) -> Any:
    """The tree with `fn` applied to every leaf, in the order of `leaves`."""
    return optree.tree_map(fn, tree, none_is_leaf=True, namespace=_NAMESPACE)


def plain(tree: Any) -> Any:
    """A copy in which mappings of any kind are dicts, so that all that they hold is a leaf."""
    return mapped(lambda x: plain(dict(x)) if isinstance(x, Mapping) else x, tree)


def same(a: Any, b: Any) -> bool:
    """Whether two trees say the same; tensors and arrays are the same if they are one object."""
    one, form = optree.tree_flatten(a, none_is_leaf=True, namespace=_NAMESPACE)
    other, form_of_other = optree.tree_flatten(b, none_is_leaf=True, namespace=_NAMESPACE)
    return form == form_of_other and all(map(_same_leaf, one, other))


def _same_leaf(a: Any, b: Any) -> bool:
    if isinstance(a, Syntax) and isinstance(b, Syntax):
        return a == b  # refs, of which the class is no matter
    if a is b or isinstance(a, Tensor) or type(a) is not type(b):
        return a is b
    if isinstance(a, float | complex):
        return repr(a) == repr(b)  # nan is nan, and 0.0 is not -0.0
    equal = a == b
    return equal if isinstance(equal, bool) else False


def hashed(tree: Any) -> int:
    """A hash that goes with `same`."""
    return hash(tuple(map(_hashed_leaf, leaves(tree))))


def _hashed_leaf(leaf: Any) -> int:
    if isinstance(leaf, Tensor):
        return id(leaf)
    if isinstance(leaf, float | complex):
        return hash(repr(leaf))
    try:
        return hash(leaf)
    except TypeError:  # an array, or an object that can change
        return hash(type(leaf))


def arguments(
    name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], tuple[tuple[str, Any], ...]]:
    """What a call of `name` keeps: a copy, from which trained parameters are refused."""
    if any(map(is_trained, leaves((args, dict(kwargs))))):
        raise TypeError(f"{name} is given a trainable parameter and a ref. {NEVER_TRAINED}")
    return plain(tuple(args)), tuple(plain(dict(kwargs)).items())
