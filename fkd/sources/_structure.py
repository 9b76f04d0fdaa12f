"""Trees of tensors as JSON over their tensors, for headers and messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fkd._base.sparse import SampledDistribution, SparseDistribution, TopKDistribution
from fkd.loops._checkpoint.tree import DTYPES

from ._scaled import ScaledTensor

_SPARSE: dict[str, type[SparseDistribution]] = {
    "top_k": TopKDistribution,
    "sampled": SampledDistribution,
}
_TAGS = {kind: tag for tag, kind in _SPARSE.items()}


def structure_of(tree: Any, leaves: list[Tensor]) -> Any:
    """A tree as JSON; its tensors are appended to `leaves`, and stand there by their places.

    Nested dicts, lists and tuples of tensors; distributions that are known on some classes are
    `["top_k", [vocab, temperature], ...]` of their tensors.

    Raises:
      TypeError: there is something else in it.
    """
    if isinstance(tree, Tensor):
        leaves.append(tree)
        return len(leaves) - 1
    if isinstance(tree, SparseDistribution):
        inside = [getattr(tree, name) for name in tree.LEAVES]
        known = [tree.vocab, tree.temperature]
        parts = [None if x is None else structure_of(x, leaves) for x in inside]
        return [_TAGS[type(tree)], known, *parts]
    if isinstance(tree, ScaledTensor):
        dtype = str(tree.dtype).removeprefix("torch.")
        return ["scaled", dtype, *(structure_of(x, leaves) for x in (tree.numbers, tree.scale))]
    if type(tree) in (list, tuple):
        return [type(tree).__name__, *(structure_of(x, leaves) for x in tree)]
    if isinstance(tree, dict) and all(isinstance(k, str) for k in tree):
        return {k: structure_of(x, leaves) for k, x in tree.items()}
    raise TypeError(type(tree).__name__)


def rebuilt(structure: Any, leaves: Sequence[Any] | Mapping[int, Any]) -> Any:
    """The tree of a structure; what was scaled is scaled back.

    Example:
      >>> rebuilt({"a": 0, "b": ["tuple", 1]}, ["x", "y"])
      {'a': 'x', 'b': ('y',)}
    """
    if isinstance(structure, int):
        return leaves[structure]
    if isinstance(structure, dict):
        return {k: rebuilt(x, leaves) for k, x in structure.items()}
    if structure[0] in _SPARSE:
        kind, (vocab, temperature) = _SPARSE[structure[0]], structure[1]
        inside: list[Any] = [None if x is None else rebuilt(x, leaves) for x in structure[2:]]
        fields = dict(zip(kind.LEAVES, inside, strict=True))
        return kind(vocab=vocab, temperature=temperature, **fields)
    if structure[0] == "scaled":
        numbers, scale = (rebuilt(x, leaves) for x in structure[2:])
        return ScaledTensor(numbers, scale, DTYPES[structure[1]]).tensor()
    items = [rebuilt(x, leaves) for x in structure[1:]]
    return tuple(items) if structure[0] == "tuple" else items


def parts(structure: Any) -> list[Any]:
    """The structures within a structure; none of a tensor.

    Raises:
      ValueError: it is not one.
    """
    if isinstance(structure, int):
        return []
    if isinstance(structure, dict):
        return list(structure.values())
    if isinstance(structure, list) and structure:
        tag, rest = structure[0], structure[1:]
        if tag in ("list", "tuple"):
            return rest
        if tag == "scaled" and len(rest) == 3 and rest[0] in DTYPES:
            return rest[1:]
        if tag in _SPARSE and len(rest) == 1 + len(_SPARSE[tag].LEAVES):
            vocab, temperature = rest[0]
            if type(vocab) is int and type(temperature) in (int, float):
                return [x for x in rest[1:] if x is not None]
    raise ValueError(f"{structure!r:.60} is no structure of tensors")


def is_sparse(structure: Any) -> bool:
    """Whether a value is a distribution that is known on some classes."""
    return isinstance(structure, list) and bool(structure) and structure[0] in _SPARSE


def indices(structure: Any) -> list[int]:
    """The places of the tensors of a structure."""
    if isinstance(structure, int):
        return [structure]
    return [i for part in parts(structure) for i in indices(part)]


def shifted(structure: Any, by: int) -> Any:
    """The structure over tensors that stand so many places behind."""
    if isinstance(structure, int):
        return structure + by
    if isinstance(structure, dict):
        return {k: shifted(x, by) for k, x in structure.items()}
    first = 2 if structure[0] in (*_SPARSE, "scaled") else 1
    rest = [None if x is None else shifted(x, by) for x in structure[first:]]
    return [*structure[:first], *rest]
