"""A teacher's values on a few samples, in several batches: they show what is by sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import optree
import torch
from torch import Tensor

from fkd.loops._data.batch import examples_in, normalised
from fkd.loops._data.fields import Field
from fkd.loops._data.packing import Packed

from ._keep import DRAWS, reseeded, seeds_of
from ._rows import Reading, Samples, Span

Fields: TypeAlias = Mapping[Any, Any]
"""The parts of a batch by name or place."""
Runs: TypeAlias = Callable[[Fields], list[Any]]
"""The values of all refs for the fields of a batch."""

FEW = 4
"""On how many samples it is found out what can be kept."""


def masks_of(
    mask: Field | Sequence[Field] | None, fields: Sequence[Field], batch: Fields
) -> tuple[Field, ...]:
    """The masks by which samples are cut: of those meant, the ones that the teacher reads; if it
    reads none of them, those that the batch has."""
    if mask is None:
        return ()
    named = (mask,) if isinstance(mask, Field) else tuple(mask)
    end = f"_{mask}" if isinstance(mask, str) else None
    read = [n for n in fields if n in named or (end is not None and str(n).endswith(end))]
    return tuple(read) or tuple(n for n in named if n in batch)


def few_samples(batch: Fields, mask: Field | Sequence[Field] | None
                ) -> Fields:  # fmt: skip
    """A few samples of a batch, the shortest and the longest among them: a teacher that is run on
    them several times costs no more than on a batch. All, where positions are packed over rows."""
    tensors: Any = normalised(batch)
    count = examples_in(tensors)
    packed = optree.tree_leaves(tensors, is_leaf=lambda x: isinstance(x, Packed))
    if count <= FEW or any(isinstance(x, Packed) for x in packed):
        return batch
    name = mask if isinstance(mask, Field) else mask[0] if mask else None
    rows = list(range(FEW))
    if name in tensors and tensors[name].ndim == 2:
        order = tensors[name].cpu().long().sum(1).argsort(stable=True).tolist()
        rows = sorted({order[0], order[-1], *rows[: FEW - 2]})

    def some(x: Any) -> Any:
        if isinstance(x, Tensor | np.ndarray):
            return x[rows] if x.ndim and x.shape[0] == count else x
        if isinstance(x, list | tuple) and len(x) == count:
            return [x[r] for r in rows]
        return x

    return {n: optree.tree_map(some, x, is_leaf=_is_column) for n, x in batch.items()}


def _is_column(x: Any) -> bool:
    """Whether a list of a batch holds what is no tree: numbers or texts, one for each sample."""
    return isinstance(x, list | tuple) and all(isinstance(i, int | float | str) for i in x)


@dataclass(frozen=True)
class Pair:
    """The value of a ref where each sample has one token less by a mask, in two batches.

    Attributes:
      mask: its number.
      long, short: in a batch as long as before, and in one that is shorter by one.
      samples, short_samples: of these.
    """

    mask: int
    long: Any
    short: Any
    samples: Samples
    short_samples: Samples


@dataclass(frozen=True)
class View:
    """The value of a ref in several batches.

    Attributes:
      live: of the batch itself.
      mixed: of the same rows in another company; row k is row `rows[k]`.
      pairs: of shorter samples, for each mask.
    """

    samples: Samples
    live: Any
    mixed: Any
    rows: Tensor
    pairs: tuple[Pair, ...]


def views(runs: Runs, reading: Reading, tensors: Fields, batch: Fields) -> Iterator[View]:
    samples = reading.samples(batch)
    count = len(samples.keys)
    half = max(1, count // 2)
    rows = torch.arange(max(2, count)) % half
    tensors = {**tensors, **seeds_of(samples)}
    live, mixed = runs(tensors), runs(_of_rows(tensors, count, lambda x: x[rows.to(x.device)]))
    shorter = [
        _shorter(runs, reading, tensors, batch, samples, m)
        for m, span in enumerate(samples.spans)
        if span.length > 1
    ]
    for i, (one, other) in enumerate(zip(live, mixed, strict=True)):
        yield View(samples, one, other, rows, tuple(pairs[i] for pairs in shorter))


def _shorter(
    runs: Runs,
    reading: Reading,
    tensors: Fields,
    batch: Fields,
    samples: Samples,
    m: int,
) -> list[Pair]:
    """The values of all refs where each sample has one token less by a mask."""
    span, name, seeds = samples.spans[m], reading.masks[m], tensors[DRAWS]
    left = min(span.stop) == span.length and max(span.start) > 0
    mask = tensors[name].clone()
    for r in (r for r, size in enumerate(span.sizes) if size > 1):
        mask[r, span.start[r] if left else span.stop[r] - 1] = 0
    padded = {**tensors, name: mask}
    ids = {} if reading.key is None else {reading.key: batch[reading.key]}
    whole_batch: Any = {**padded, **ids}
    long = reading.samples(whole_batch)
    whole = long.spans[m]
    start, stop = ([x - int(left) for x in ends] for ends in (whole.start, whole.stop))
    moved = Span(start, stop, whole.length - 1)
    short = long._replace(spans=(*long.spans[:m], moved, *long.spans[m + 1 :]))
    ends = slice(1, None) if left else slice(None, -1)

    def cut(path: optree.PyTreeAccessor, x: Any) -> Any:
        if not isinstance(x, Tensor) or x.ndim < 2 or x.shape[0] != len(samples.keys):
            return x
        first = reading.mask_of(path.codify("batch"), x, samples.spans)
        alone = samples.lengths.count(span.length) == 1
        for axis in (1, 2):
            mine = first == m if axis == 1 else alone or first == m
            if axis < x.ndim and x.shape[axis] == span.length and mine:
                x = x[(slice(None),) * axis + (ends,)]
        return x

    def run(values: Any, of: Samples) -> list[Any]:
        return runs({**values, DRAWS: reseeded(seeds, of)})

    fields: Any = {n: x for n, x in padded.items() if n != DRAWS}
    fewer = optree.tree_map_with_accessor(cut, fields, is_leaf=lambda x: isinstance(x, Packed))
    values = zip(run(fields, long), run(fewer, short), strict=True)
    return [Pair(m, a, b, long, short) for a, b in values]


def _of_rows(batch: Fields, rows: int, fn: Callable[[Tensor], Tensor]) -> Any:
    def change(x: Any) -> Any:
        by_row = isinstance(x, Tensor) and x.ndim > 0 and x.shape[0] == rows
        return fn(x) if by_row else x

    tree: Any = batch
    return optree.tree_map(change, tree, is_leaf=lambda x: isinstance(x, Packed))
