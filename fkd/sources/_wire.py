"""Trees of tensors as bytes on their way between two machines: safetensors, and never a pickle."""

from __future__ import annotations

import collections
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from fkd._base.sparse import SampledDistribution, SparseDistribution, TopKDistribution
from fkd._base.types import Batch
from fkd._refs.attached import without_values
from fkd.loops._checkpoint.tensors import NAMES, chunks, describe, is_dense
from fkd.loops._data.batch import Signature, signature
from fkd.loops._data.fields import WHOLE, Field, as_fields
from fkd.loops._data.packing import Packed

from ._errors import SourceError

CONTENT = "application/x-fkd-safetensors"
"""The media type. No page of a browser can send it to a server without asking for leave first."""

_DTYPES = {name: dtype for dtype, name in NAMES.items()}
_SPARSE = {kind.__name__: kind for kind in (TopKDistribution, SampledDistribution)}
_MOST_HEADER = 1 << 24
_MOST_DEPTH = 16
_MOST_PLACES = 1024


class Message(NamedTuple):
    """A tree of tensors, and JSON about it."""

    tree: Any
    about: dict[str, Any]


class Malformed(ValueError):
    """Bytes that are not a message; says in what."""


def packed(tree: Any, about: Mapping[str, Any]) -> list[bytes | memoryview]:
    """The bytes of a message, in pieces.

    Args:
      tree: tensors, sparse distributions and `Packed` positions in nested dicts, lists and tuples,
        on any device.
      about: JSON.

    Raises:
      SourceError: there is something else in the tree.
    """
    leaves: list[Tensor] = []
    try:
        structure = _structure(tree, leaves)
    except TypeError as error:
        raise SourceError(
            f"a value has a {error} in it, and tensors in dicts, lists and tuples can be sent. "
            "Let the terms read its parts: teacher.logits."
        ) from None
    unknown = [x.dtype for x in leaves if x.dtype not in NAMES]
    if unknown:
        raise SourceError(f"a tensor of {unknown[0]} cannot be sent; safetensors has no such type.")
    # Axes in another order (channels_last) stay so: the bits of a convolution depend on it.
    strides = {
        str(i): describe(x)["stride"] for i, x in enumerate(leaves) if "stride" in describe(x)
    }
    text = json.dumps({"structure": structure, "strides": strides, "about": dict(about)})
    tensors = {str(i): x.detach() for i, x in enumerate(leaves)}
    return list(chunks(tensors, {"fkd": text}))


def question_of(fields: Mapping[Field, Tensor], batch: Batch) -> list[bytes | memoryview]:
    """The bytes of some fields of a batch, with what the server needs to make one of its kind."""
    like = without_values(batch)
    kind: dict[str, Any] = {}
    if isinstance(like, tuple) and hasattr(like, "_fields"):
        kind = {"names": list(as_fields(like))}
    elif isinstance(like, tuple | list):
        kind = {"places": len(like)}
    elif WHOLE in fields:
        kind = {"places": WHOLE}
    return packed({str(name): x for name, x in fields.items()}, kind)


def asked_of(message: Message) -> Any:
    """The batch of a question.

    Raises:
      Malformed: it is none.
    """
    fields, about = message.tree, message.about
    if not isinstance(fields, dict):
        raise Malformed("a batch is expected: a dict of fields")
    names, places = about.get("names"), about.get("places")
    if names is not None:
        return _record(names)(*(fields.get(name) for name in names))
    if places is None:
        return fields
    if places == WHOLE and list(fields) == [str(WHOLE)]:
        return fields[str(WHOLE)]
    if type(places) is not int or not 0 < places <= _MOST_PLACES:
        raise Malformed(f"it is of a batch of {places!r:.40} parts")
    parts = tuple(fields.pop(str(place), None) for place in range(places))
    if fields:
        raise Malformed(f"it has {list(fields)!r:.80} besides the {places} parts of a batch")
    return parts


def _record(names: Any) -> Any:
    """The kind of a named tuple.

    Raises:
      Malformed: these are no names.
    """
    if not isinstance(names, list) or len(names) > _MOST_PLACES:
        raise Malformed("it has no names of the parts of a batch")
    try:
        return collections.namedtuple("Batch", names)  # pyright: ignore[reportUntypedNamedTuple]
    except (ValueError, TypeError):
        raise Malformed(f"{names!r:.80} are no names of the parts of a batch") from None


def can_be_sent(tree: Any) -> bool:
    """Whether a tree has a form in which it can be sent."""
    leaves: list[Tensor] = []
    try:
        _structure(tree, leaves)
    except TypeError:
        return False
    return all(x.dtype in NAMES for x in leaves)


def form_of(tree: Any) -> str:
    """The dtypes and shapes of the tensors of a tree, in words."""
    return told(signature(tree))


def leaves_of(value: Any) -> list[tuple[Tensor, float]]:
    """The tensors of a value, and a number that may stand in each though it is not finite: in a
    sparse distribution, the logarithm of 0."""
    whole = optree.tree_leaves(value, is_leaf=lambda x: isinstance(x, SparseDistribution))
    return [
        (x, -torch.inf if isinstance(part, SparseDistribution) else 0.0)
        for part in whole
        for x in optree.tree_leaves(part)
    ]


def told(form: Signature) -> str:
    """Dtypes and shapes in words."""
    names = (str(dtype).removeprefix("torch.") for dtype in form.dtypes)
    pairs = zip(names, form.shapes, strict=True)
    return ", ".join(f"{name}{list(shape)}" for name, shape in pairs)


def size_of(pieces: list[bytes | memoryview]) -> int:
    """How many bytes there are."""
    return sum(memoryview(piece).nbytes for piece in pieces)


def unpacked(raw: bytearray) -> Message:
    """The message of some bytes.

    Every length, offset, dtype and index is compared with the bytes that are there.

    Raises:
      Malformed: they are not one.
    """
    header, start = _header(raw)
    try:
        content = json.loads(header.pop("__metadata__")["fkd"])
        about = content["about"]
        tensors = {int(name): _tensor(raw, start, x) for name, x in header.items()}
        for name, stride in content["strides"].items():
            tensors[int(name)] = _ordered(tensors[int(name)], stride)
        return Message(_tree(content["structure"], tensors, 0), dict(about))
    except Malformed:
        raise
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise Malformed(f"its header is not one of a message ({type(error).__name__})") from None


def _header(raw: bytearray) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 or length > min(_MOST_HEADER, len(raw) - 8):
        raise Malformed(f"it has {len(raw)} bytes, and a header of {length} does not fit into it")
    try:
        header = json.loads(raw[8 : 8 + length])
    except (ValueError, RecursionError):
        raise Malformed("its header is not JSON") from None
    if not isinstance(header, dict):
        raise Malformed("its header is not an object of JSON")
    return header, 8 + length


def _tensor(raw: bytearray, start: int, about: Mapping[str, Any]) -> Tensor:
    dtype, shape = _DTYPES[about["dtype"]], [_count(n) for n in about["shape"]]
    first, last = (start + _count(n) for n in about["data_offsets"])
    if last > len(raw) or last - first != math.prod(shape) * dtype.itemsize:
        raise Malformed(
            f"a tensor {shape} of {dtype} stands at bytes {first} to {last} of {len(raw)}"
        )
    if first == last:
        return torch.empty(shape, dtype=dtype)
    data = torch.frombuffer(raw, dtype=torch.uint8, count=last - first, offset=first)
    if dtype is torch.bool:  # a byte that is neither 0 nor 1 is not a bool
        return (data != 0).reshape(shape)
    # A copy is aligned as torch aligns all tensors, on which the bits of a product depend.
    return data.clone().view(dtype).reshape(shape)


def _ordered(x: Tensor, stride: Any) -> Tensor:
    """The tensor with its axes in the order that the strides say."""
    if not isinstance(stride, list) or not is_dense(x.shape, [_count(n) for n in stride]):
        raise Malformed(f"the strides {stride!r:.40} do not fit a tensor {tuple(x.shape)}")
    return torch.empty_strided(tuple(x.shape), stride, dtype=x.dtype).copy_(x)


def _count(n: Any) -> int:
    if type(n) is not int or n < 0:
        raise Malformed(f"{n!r} stands where a length is expected")
    return n


def _structure(tree: Any, leaves: list[Tensor]) -> Any:
    """The tree as JSON, in which a tensor is its number in `leaves`.

    Raises:
      TypeError: there is something else in it.
    """
    if isinstance(tree, Tensor):
        leaves.append(tree)
        return len(leaves) - 1
    if isinstance(tree, SparseDistribution):
        fields = {name: getattr(tree, name) for name in tree.LEAVES}
        inside = {n: _structure(x, leaves) for n, x in fields.items() if x is not None}
        return [type(tree).__name__, tree.vocab, tree.temperature, inside]
    if isinstance(tree, Packed):
        return ["packed", *(_structure(x, leaves) for x in tree)]
    if type(tree) in (list, tuple):
        return [type(tree).__name__, *(_structure(x, leaves) for x in tree)]
    if isinstance(tree, dict) and all(isinstance(k, str) for k in tree):
        return {k: _structure(x, leaves) for k, x in tree.items()}
    raise TypeError(type(tree).__name__)


def _tree(structure: Any, tensors: dict[int, Tensor], depth: int) -> Any:
    """The tree of a structure; every tensor of it is taken from `tensors` once.

    Raises:
      Malformed: it is not one over these tensors.
    """
    if depth > _MOST_DEPTH:
        raise Malformed("its tree is too deep")
    if isinstance(structure, dict):
        return {k: _tree(x, tensors, depth + 1) for k, x in structure.items()}
    if isinstance(structure, list) and structure:
        kind, *inside = structure
        if kind in _SPARSE:
            vocab, temperature, fields = inside
            entries = {n: _tree(x, tensors, depth + 1) for n, x in fields.items()}
            return _SPARSE[kind](vocab=_count(vocab), temperature=float(temperature), **entries)
        if kind == "packed":
            return Packed(*(_tree(x, tensors, depth + 1) for x in inside))
        if kind in ("list", "tuple"):
            items = [_tree(x, tensors, depth + 1) for x in inside]
            return items if kind == "list" else tuple(items)
    if type(structure) is not int or structure not in tensors:
        raise Malformed(f"its tree has {structure!r:.40}, which is not one of its tensors")
    return tensors.pop(structure)
