"""Heads of which each of several ranks has some rows: `DTensor`s, cut along the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from ._arguments import Side
from ._division import Division


def divided(student: Side, teacher: Side) -> tuple[Side, Side, Division | None]:
    """Both heads with the rows of this rank, if one of them is cut along the vocabulary.

    A head that is whole gives up the rows of the others; the gradient by it is whole again.

    Raises:
      ValueError: a weight is cut in another way, or the two are cut at different places.
    """
    student, teacher = _replicated(student), _replicated(teacher)
    sides = {"student": student} | ({"teacher": teacher} if teacher.hidden is not None else {})
    cut = {n: _rows_of(n, side) for n, side in sides.items() if isinstance(side.weight, DTensor)}
    if not cut:
        return student, teacher, None
    _expect_one_vocabulary(sides)
    parts = {name: _place(name, sides[name], rows) for name, rows in cut.items()}
    if len(set(parts.values())) > 1:
        places = [f"{n}_weight from {p.start} to {p.stop}" for n, p in parts.items()]
        raise ValueError(
            f"head_divergence: this rank has other entries of one head than of the other: "
            f"{' and '.join(places)} of the shared vocabulary. Cut both alike, or give one whole: "
            "weight.full_tensor()."
        )
    part = next(iter(parts.values()))
    local = {n: _local(side, cut.get(n), part) for n, side in sides.items()}
    return local["student"], local.get("teacher", teacher), part


def _expect_one_vocabulary(sides: Mapping[str, Side]) -> None:
    """Refuse what only some of the ranks would notice, each of its rows."""
    counts = {n: stop - start for n, side in sides.items() if side.weight is not None
              for start, stop in [_shared(n, side)]}  # fmt: skip
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"head_divergence: student_weight has {counts['student']} entries and teacher_weight "
            f"{counts['teacher']}; one shared vocabulary is expected. Give student_vocabulary and "
            "teacher_vocabulary: slices of the ids that both models have."
        )


def _replicated(side: Side) -> Side:
    """With plain tensors in place of those that every rank has."""
    hidden: Any = side.hidden
    if isinstance(hidden, DTensor):
        hidden = hidden.redistribute(placements=[Replicate()] * len(hidden.placements)).to_local()
    return side._replace(
        hidden=hidden, weight=_if_everywhere(side.weight), bias=_if_everywhere(side.bias)
    )


def _if_everywhere(x: Tensor | None) -> Tensor | None:
    if isinstance(x, DTensor) and all(place.is_replicate() for place in x.placements):
        return x.to_local()
    return x


def _rows_of(name: str, side: Side) -> Division:
    """Which rows of its whole weight this rank has."""
    weight = side.weight
    assert isinstance(weight, DTensor)
    mesh, places = weight.device_mesh, weight.placements
    axes = [i for i, place in enumerate(places) if not place.is_replicate()]
    if len(axes) != 1 or not (isinstance(places[axes[0]], Shard) and places[axes[0]].is_shard(0)):
        raise ValueError(
            f"head_divergence: {name}_weight is a DTensor with the placements {places}; rows along "
            "one axis of its mesh (Shard(0)) are expected, as ColwiseParallel cuts an lm_head."
        )
    size, rank = mesh.size(axes[0]), mesh.get_local_rank(axes[0])
    every = weight.shape[0]
    most = -(-every // size)
    start, stop = min(rank * most, every), min((rank + 1) * most, every)
    return Division(mesh.get_group(axes[0]).group_name, size, rank, most, start, stop)


def _place(name: str, side: Side, rows: Division) -> Division:
    """Where the rows of this rank are in the shared vocabulary."""
    assert side.weight is not None
    begin, end = _shared(name, side)
    start = min(max(rows.start - begin, 0), end - begin)
    stop = min(max(rows.stop - begin, start), end - begin)
    return rows._replace(start=start, stop=stop)


def _shared(name: str, side: Side) -> tuple[int, int]:
    """The first and the last row (not included) of a model's shared entries."""
    assert side.weight is not None
    entries, vocabulary = side.weight.shape[0], side.vocabulary
    if vocabulary is None:
        return 0, entries
    if isinstance(vocabulary, slice):
        begin, end, stride = vocabulary.indices(entries)
        if stride == 1:
            return begin, max(end, begin)
    raise ValueError(
        f"head_divergence: {name}_vocabulary is {vocabulary!r}, and a head is cut along the "
        "vocabulary over several ranks; a slice of neighbouring ids is expected, such as "
        "slice(0, 151_643)."
    )


def _local(side: Side, rows: Division | None, part: Division) -> Side:
    """A head with the entries of this rank."""
    if side.weight is None:
        return side
    begin, _ = _shared("student", side)
    wanted = slice(begin + part.start, begin + part.stop)
    weight, bias = (
        x if x is None else _entries(x, rows, wanted, part) for x in (side.weight, side.bias)
    )
    return side._replace(weight=weight, bias=bias, vocabulary=None)


def _entries(x: Tensor, rows: Division | None, wanted: slice, part: Division) -> Tensor:
    if isinstance(x, DTensor):
        assert rows is not None
        return x.to_local()[wanted.start - rows.start : wanted.stop - rows.start]
    if x.requires_grad and torch.is_grad_enabled():
        return _Part.apply(x, wanted.start, wanted.stop, part)  # pyright: ignore[reportReturnType]
    return x[wanted]


class _Part(torch.autograd.Function):
    """Some rows of a tensor that all ranks have, each others; the gradient is that of all."""

    @staticmethod
    def forward(x: Tensor, start: int, stop: int, part: Division) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return x[start:stop].clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.start, ctx.stop, ctx.part = inputs
        ctx.rows = x.shape[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        grad = grads[0]
        before = grad.new_zeros(ctx.start, *grad.shape[1:])
        after = grad.new_zeros(ctx.rows - ctx.stop, *grad.shape[1:])
        return ctx.part.summed(torch.cat([before, grad, after])), None, None, None
