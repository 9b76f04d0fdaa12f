"""optree with None as a leaf: an argument of a loss that is left out has its place, too."""

from __future__ import annotations

import functools

import optree

tree_flatten = functools.partial(optree.tree_flatten, none_is_leaf=True)
tree_leaves = functools.partial(optree.tree_leaves, none_is_leaf=True)
tree_map = functools.partial(optree.tree_map, none_is_leaf=True)
tree_unflatten = optree.tree_unflatten
