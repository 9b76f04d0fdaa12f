"""What can be kept sample by sample: found out on one batch, before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optree
import torch
from torch import Tensor

from fkd._base.types import Batch
from fkd._objective.apply import call_arguments
from fkd._objective.frontier import parts_to_keep, reduced
from fkd._objective.objective import Objective
from fkd._objective.program import Program
from fkd._refs.refs import Item, Ref, Root, children, node
from fkd._refs.sourced import FIELD
from fkd.loops._data.batch import normalised
from fkd.loops._data.packing import Packed

from ._bind import relative_difference
from ._errors import SourceError
from ._keep import DRAWS, Keep, seeds_of
from ._live import Teacher
from ._rows import Form, Reading, Samples
from ._structure import shifted, structure_of

ALIKE = 0.02
"""How much a value may differ, relatively, in a batch with other samples, or less padding; which
share of its entries, if they are integers."""


@dataclass(frozen=True)
class Found:
    """What is kept, and in which form.

    Attributes:
      refs: what is kept.
      computed: what the teacher computes for each: the ref itself, or less than it.
      reading: how samples are recognised.
      structures: of the value of each ref, over the forms.
      forms: of the tensors; dtypes are those of the teacher.
    """

    refs: tuple[Ref, ...]
    computed: tuple[Ref, ...]
    reading: Reading
    structures: list[Any]
    forms: list[Form]


class _Flaw(Exception):
    """Why a value cannot be kept sample by sample."""


def probe(
    objective: Objective,
    refs: Sequence[Ref],
    keep: Mapping[Ref, Keep],
    batch: Batch,
    key: str | None,
    mask: str | None,
    teacher: Callable[[Sequence[Ref]], Teacher],
) -> Found:
    """Find out what of an objective can be kept by sample.

    A value that is not by sample (a matrix between the samples of a batch, packed positions, a
    mean over padding) is replaced by those that it is computed from.

    Args:
      objective: of which the refs are.
      refs: what should be kept.
      keep: how much of those that were asked for, which are not to be replaced by others.
      batch: as the loader yields it.
      key, mask: see `Reading`.
      teacher: makes the forward pass for refs.

    Raises:
      SourceError: a value depends on the other samples of a batch, or on padding.
    """
    frozen = {name for name, model in objective.models.items() if model.kind == "frozen"}
    tensors: Any = normalised(batch)
    while True:
        computed = tuple(keep[r].computed(r) if r in keep else r for r in refs)
        runs = teacher(computed)
        fields = fields_read(runs.program, tensors)
        reading = Reading(tuple(n for n in fields if n != key), key, mask)
        forms: list[Form] = []
        structures: list[Any] = []
        next_refs: list[Ref] = []
        for ref, views in zip(refs, _views(runs, reading, tensors, batch), strict=True):
            try:
                structures.append(_structure(ref, views, forms))
                next_refs.append(ref)
            except _Flaw as flaw:
                parts = () if ref in keep else parts_to_keep(ref, frozen)
                if not parts:
                    raise SourceError(f"cache: {ref!r} {flaw}") from None
                next_refs += parts
        if len(structures) == len(refs):
            return Found(tuple(refs), computed, reading, structures, forms)
        refs = reduced(next_refs, frozen)


def fields_read(program: Program, batch: Mapping[str, Any]) -> list[str]:
    """The fields of a batch that models and refs read."""
    owner = {id(x): n for n, field in batch.items() for x in optree.tree_leaves(field)}
    every = {n for n in batch if not n.startswith(FIELD)}
    names: set[str] = set()
    for model in program.runs:
        spy = _Spy(batch)
        given: Any = call_arguments(program.model(model), spy)
        ids = [id(x) for x in optree.tree_leaves(given) if isinstance(x, Tensor)]
        names |= {owner[i] for i in ids if i in owner}
        if any(i not in owner for i in ids):
            names |= spy.read or every
    root = Root("batch")
    for ref in program.plan.refs:
        part = node(ref)
        if any(node(child) == root for child in children(ref)):
            single = isinstance(part, Item) and part.key in batch
            names |= {part.key} if single and isinstance(part, Item) else every
    return [name for name in batch if name in names and not name.startswith(FIELD)]


class _Spy(dict[str, Any]):
    """A batch that remembers which fields were asked for."""

    def __init__(self, batch: Mapping[str, Any]) -> None:
        super().__init__(batch)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """As of a dict."""
        return self[key] if key in self else default


@dataclass(frozen=True)
class _View:
    """The value of a ref in three batches.

    Attributes:
      live: of the batch itself.
      mixed: of the same rows in another company; row k is row `rows[k]`.
      short: of a batch with one token less than `long`, if there is a mask.
      long: of the batch with a token of each sample masked.
    """

    samples: Samples
    live: Any
    mixed: Any
    rows: Tensor
    long: Any = None
    short: Any = None
    long_samples: Samples | None = None
    offset: int = 0


def _views(
    runs: Teacher, reading: Reading, tensors: Mapping[str, Any], batch: Batch
) -> Iterator[_View]:
    samples = reading.samples(batch)
    count = len(samples.keys)
    half = max(1, count // 2)
    rows = torch.arange(max(2, count)) % half
    seeds = seeds_of(samples)
    tensors = {**tensors, DRAWS: seeds}
    live, mixed = runs(tensors), runs(_of_rows(tensors, count, lambda x: x[rows.to(x.device)]))
    if reading.mask is None or samples.length < 2:
        return (_View(samples, a, b, rows) for a, b in zip(live, mixed, strict=True))
    left = min(samples.stop) == samples.length and max(samples.start) > 0
    mask = tensors[reading.mask].clone()
    for r in (r for r in range(count) if samples.sizes[r] > 1):
        mask[r, samples.start[r] if left else samples.stop[r] - 1] = 0
    padded = {**tensors, reading.mask: mask}
    ends = slice(1, None) if left else slice(None, -1)

    def cut(x: Tensor) -> Tensor:
        for axis in (a for a in (1, 2) if a < x.ndim and x.shape[a] == samples.length):
            x = x[(slice(None),) * axis + (ends,)]
        return x

    ids = {} if reading.key is None or not isinstance(batch, Mapping) else \
          {reading.key: batch[reading.key]}  # fmt: skip
    long_samples = reading.samples({**padded, **ids})
    start = torch.tensor(long_samples.start)
    padded = {**padded, DRAWS: {**seeds, "start": start}}
    shorter = {**padded, DRAWS: {**seeds, "start": start - int(left)}}
    long, short = runs(padded), runs(_of_rows(shorter, count, cut))
    return (
        _View(samples, a, b, rows, c, d, long_samples, int(left))
        for a, b, c, d in zip(live, mixed, long, short, strict=True)
    )


def _of_rows(batch: Mapping[str, Any], rows: int, fn: Callable[[Tensor], Tensor]) -> Any:
    def change(x: Any) -> Any:
        by_row = isinstance(x, Tensor) and x.ndim > 0 and x.shape[0] == rows
        return fn(x) if by_row else x

    tree: Any = batch
    return optree.tree_map(change, tree, is_leaf=lambda x: isinstance(x, Packed))


def _structure(ref: Ref, view: _View, forms: list[Form]) -> Any:
    """The structure of a value over the forms, to which those of its tensors are added."""
    live: list[Tensor] = []
    try:
        structure = structure_of(view.live, live)
    except TypeError as error:
        raise _Flaw(
            f"is a {type(view.live).__name__} with a {error}, and tensors in dicts, lists and "
            "tuples can be kept. Let the terms read its parts: teacher.logits."
        ) from None
    others = [_leaves(tree) for tree in (view.mixed, view.long, view.short)]
    made = [
        _form(view, x, others[0][i], *(other[i] if other else None for other in others[1:]))
        for i, x in enumerate(live)
    ]
    first = len(forms)
    forms += made
    return shifted(structure, first)


def _leaves(tree: Any) -> list[Tensor]:
    """The tensors of a value in the order of `structure_of`; none of a value that is not there."""
    leaves: list[Tensor] = []
    if tree is not None:
        structure_of(tree, leaves)
    return leaves


def _form(view: _View, live: Tensor, mixed: Tensor, long: Any, short: Any) -> Form:
    """The form of a tensor.

    Raises:
      _Flaw: it cannot be kept by sample.
    """
    count, rows = len(view.samples.keys), view.rows
    fits = live.ndim and live.shape[0] == count and mixed.shape[1:] == live.shape[1:]
    if not fits or mixed.shape[0] != len(rows):
        raise _Flaw(
            f"has shape {tuple(live.shape)}, and a row for each of {count} samples is expected"
        )
    if not _alike(mixed, live[rows.to(live.device)]):
        raise _Flaw(
            "depends for each sample on the other samples of its batch, which are others in the "
            "next epoch. Let the objective compute it from what does not: fkd.call(fn, ...)."
        )
    shape: list[int | None] = list(live.shape[1:])
    if long is None:
        return Form(live.dtype, live.dtype, tuple(shape), 0.0)
    length = view.samples.length
    for axis, (n, m) in enumerate(zip(long.shape[1:], short.shape[1:], strict=True)):
        if n == length and m == length - 1:
            shape[axis] = None
        elif n != m:
            raise _Flaw(f"has {n} entries on axis {axis + 1} of a batch that is {length} long")
    form = Form(live.dtype, live.dtype, tuple(shape), 0.0)
    _expect_alike(view, form, long, short)
    return form._replace(fill=_fill(view, form, long))


def _expect_alike(view: _View, form: Form, long: Tensor, short: Tensor) -> None:
    """Refuse values that depend on how much padding the batch has."""
    samples = view.long_samples
    assert samples is not None
    for r in range(len(samples.keys)):
        a, b = samples.start[r], samples.stop[r]
        if a < view.offset or b - view.offset > samples.length - 1 or a == b:
            continue
        one, other = form.cut(long[r], a, b), form.cut(short[r], a - view.offset, b - view.offset)
        if not _alike(other, one):
            raise _Flaw(
                "depends for each sample on how much padding its batch has. With batches of one "
                "length, keep whole rows: cache(..., mask=None). If the padding is on the left, "
                "give the model position_ids."
            )


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two values are one, as far as a teacher rounds. Of integers (the most probable
    classes, say) some may have changed their places."""
    if not other.is_floating_point():
        return float((one != other).double().mean()) <= ALIKE if other.numel() else True
    return relative_difference(one, other) <= ALIKE


def _fill(view: _View, form: Form, long: Tensor) -> float:
    """What stands between the tokens of a sample and the padding (0 for attention maps, the
    lowest number for scores)."""
    if len(form.axes) < 2:
        return 0.0
    samples = view.long_samples
    assert samples is not None
    outside: list[Tensor] = []
    for r in range(len(samples.keys)):
        a, b = samples.start[r], samples.stop[r]
        row = long[r]
        for axis in form.axes[:-1]:
            row = row.narrow(axis, a, b - a)
        last = form.axes[-1]
        outside += [row.narrow(last, 0, a), row.narrow(last, b, samples.length - b)]
    flat = torch.cat([x.reshape(-1) for x in outside]).cpu()
    if not flat.numel():
        return 0.0
    if bool((flat != flat[0]).any()) or not bool(flat[0].isfinite()):
        raise _Flaw(
            "relates the tokens of a sample to its padding. Keep whole rows of batches of one "
            "length: cache(..., mask=None)."
        )
    return float(flat[0])
