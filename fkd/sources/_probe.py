"""What can be kept sample by sample: found out on one batch, before anything is written."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import optree
import torch
from torch import Tensor

from fkd._base.types import Batch, TensorBatch
from fkd._objective.apply import call_arguments
from fkd._objective.frontier import parts_to_keep, reduced
from fkd._objective.objective import Objective
from fkd._objective.program import Program
from fkd._refs.attached import without_values
from fkd._refs.refs import Item, Ref, Root, children, node
from fkd._refs.sourced import FIELD
from fkd.loops._data.batch import normalised
from fkd.loops._data.fields import WHOLE, Field, as_batch, as_fields

from ._bind import relative_difference
from ._errors import SourceError
from ._keep import Keep
from ._live import Teacher
from ._rows import Form, Reading
from ._structure import shifted, structure_of
from ._views import Pair, View, few_samples, masks_of, views

ALIKE = 0.02
"""How much a value may differ, relatively, in a batch with other samples, or less padding; which
share of its entries, if they are integers."""


@dataclass(frozen=True)
class Contents:
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
    key: Field | None,
    mask: Field | Sequence[Field] | None,
    teacher: Callable[[Sequence[Ref]], Teacher],
) -> Contents:
    """Find out what of an objective can be kept by sample.

    A value that is not by sample (a matrix between the samples of a batch, packed positions, a
    mean over padding) is replaced by those that it is computed from.

    Args:
      objective: of which the refs are.
      refs: what should be kept.
      keep: how much of those that were asked for, which are not to be replaced by others.
      batch: as the loader yields it.
      key: see `Reading`.
      mask: see `cache`.
      teacher: makes the forward pass for refs.

    Raises:
      SourceError: a value depends on the other samples of a batch, or on padding.
    """
    frozen = {name for name, model in objective.models.items() if model.kind == "frozen"}
    few = few_samples(as_fields(batch), mask)
    tensors: Any = normalised(cast(Any, few))
    while True:
        computed = tuple(keep[r].computed(r) if r in keep else r for r in refs)
        model = teacher(computed)
        fields = fields_read(model.program, as_batch(tensors, batch))
        masks = masks_of(mask, fields, tensors)
        reading = Reading(tuple(n for n in fields if n != key), key, masks)
        forms: list[Form] = []
        structures: list[Any] = []
        next_refs: list[Ref] = []
        runs = functools.partial(_of_fields, model, batch)
        for ref, view in zip(refs, views(runs, reading, tensors, few), strict=True):
            try:
                structures.append(_structure(ref, view, forms))
                next_refs.append(ref)
            except _Flaw as flaw:
                parts = () if ref in keep else parts_to_keep(ref, frozen)
                if not parts:
                    raise SourceError(f"cache: {ref!r} {flaw}") from None
                next_refs += parts
        if len(structures) == len(refs):
            return Contents(tuple(refs), computed, reading, structures, forms)
        refs = reduced(next_refs, frozen)


def _of_fields(teacher: Teacher, like: Batch, fields: Mapping[Field, Any]) -> list[Any]:
    """What a teacher says of fields as a batch of the kind of another."""
    return teacher(as_batch(fields, like))


def fields_read(program: Program, batch: TensorBatch) -> list[Field]:
    """The fields of a batch that models and refs read; of a tuple, their places."""
    fields = {n: x for n, x in as_fields(batch).items() if not str(n).startswith(FIELD)}
    owner = {id(x): n for n, field in fields.items() for x in optree.tree_leaves(field)}
    names: set[Field] = set()
    for model in program.runs:
        spy = _spying(without_values(batch))
        arguments: Any = call_arguments(program.model(model), spy)
        ids = [id(x) for x in optree.tree_leaves(arguments) if isinstance(x, Tensor)]
        names |= {owner[i] for i in ids if i in owner}
        if any(i not in owner for i in ids):
            names |= getattr(spy, "read", None) or set(fields)
    root = Root("batch")
    for ref in program.plan.refs:
        part = node(ref)
        if any(node(child) == root for child in children(ref)):
            name = _field_of(part, fields) if isinstance(part, Item) else None
            names |= set(fields) if name is None else {name}
    return [name for name in fields if name in names]


def _field_of(item: Item, fields: Mapping[Field, Any]) -> Field | None:
    """The field that an item of the batch is; None: it is no single one."""
    names, key = list(fields), item.key
    if isinstance(key, Field) and key in fields:
        return key
    place: int | None = key if type(key) is int and WHOLE not in fields else None
    inside = place is not None and -len(names) <= place < len(names)
    return names[place] if inside and place is not None else None


def _spying(batch: Any) -> Any:
    """A batch that remembers which of its parts were asked for, if it can be one."""
    if isinstance(batch, Mapping):
        return _Spy(batch)
    return _Places(batch) if type(batch) in (list, tuple) else batch


class _Places(tuple[Any, ...]):
    """Likewise of a tuple or a list."""

    read: set[Field]

    def __new__(cls, batch: Iterable[Any]) -> _Places:
        made = super().__new__(cls, batch)
        made.read = set()
        return made

    def __getitem__(self, key: Any) -> Any:
        self.read |= set(range(len(self))[key] if isinstance(key, slice) else [key % len(self)])
        return super().__getitem__(key)

    def __iter__(self) -> Iterator[Any]:
        self.read |= set(range(len(self)))
        return super().__iter__()


class _Spy(dict[str, Any]):
    """A batch that remembers which fields were asked for."""

    def __init__(self, batch: Mapping[str, Any]) -> None:
        super().__init__(batch)
        self.read: set[Field] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """As of a dict."""
        return self[key] if key in self else default


def _structure(ref: Ref, view: View, forms: list[Form]) -> Any:
    """The structure of a value over the forms, to which those of its tensors are added."""
    live: list[Tensor] = []
    try:
        structure = structure_of(view.live, live)
    except TypeError as error:
        raise _Flaw(
            f"is a {type(view.live).__name__} with a {error}, and tensors in dicts, lists and "
            "tuples can be kept. Let the terms read its parts: teacher.logits."
        ) from None
    mixed = _leaves(view.mixed)
    pairs = [(p, _leaves(p.long), _leaves(p.short)) for p in view.pairs]
    first = len(forms)
    for i, x in enumerate(live):
        of_leaf = [replace(p, long=long[i], short=short[i]) for p, long, short in pairs]
        forms.append(_form(replace(view, pairs=tuple(of_leaf)), x, mixed[i]))
    return shifted(structure, first)


def _leaves(tree: Any) -> list[Tensor]:
    """The tensors of a value in the order of `structure_of`; none of a value that is not there."""
    leaves: list[Tensor] = []
    if tree is not None:
        structure_of(tree, leaves)
    return leaves


def _form(view: View, live: Tensor, mixed: Tensor) -> Form:
    """The form of a tensor; the pairs of the view are those of this tensor.

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
    shape = list(live.shape[1:])
    for pair in view.pairs:
        length = pair.samples.lengths[pair.mask]
        for axis, (n, m) in enumerate(zip(pair.long.shape[1:], pair.short.shape[1:], strict=True)):
            if n == length and m == length - 1:
                shape[axis] = -1 - pair.mask
            elif n != m:
                raise _Flaw(
                    f"has {n} entries on axis {axis + 1} of a batch that is {length} long, and "
                    f"{m} where it is {length - 1} long: which of them are padding is not known (a "
                    "teacher with another frame rate, say). Pad every sample to one length, and "
                    "keep whole rows: cache(..., mask=None)."
                )
    form = Form(live.dtype, live.dtype, tuple(shape), 0.0)
    for pair in view.pairs:
        _expect_alike(pair, form)
    return form._replace(fill=_fill(view, form))


def _expect_alike(pair: Pair, form: Form) -> None:
    """Refuse values that depend on how much padding the batch has."""
    spans, moved = pair.samples.spans, pair.short_samples.spans
    long, short = spans[pair.mask], moved[pair.mask]
    for r in range(len(pair.samples.keys)):
        empty = long.start[r] == long.stop[r]
        if empty or short.start[r] < 0 or short.stop[r] > short.length:
            continue
        if not _alike(form.cut(pair.short[r], moved, r), form.cut(pair.long[r], spans, r)):
            raise _Flaw(
                "depends for each sample on how much padding its batch has. With batches of one "
                "length, keep whole rows: cache(..., mask=None). If the padding is on the left, "
                "give the model position_ids."
            )


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two values are one, as far as a teacher rounds. Of integers (the most probable
    classes, say) some may be others, and those of a row may have changed their places: of logits
    that are nearly equal, the order is a matter of rounding."""
    if other.is_floating_point():
        return relative_difference(one, other) <= ALIKE
    if not other.numel() or _share(one != other) <= ALIKE:
        return True
    return other.ndim > 0 and _share(~_members(one, other)) <= ALIKE


def _share(where: Tensor) -> float:
    return float(where.double().mean())


def _members(one: Tensor, other: Tensor) -> Tensor:
    """Which entries of the rows of one are anywhere in the same row of the other."""
    wanted, rows = one.long().contiguous(), other.long().sort(dim=-1).values
    places = torch.searchsorted(rows, wanted).clamp_max(rows.shape[-1] - 1)
    return rows.gather(-1, places) == wanted


def _fill(view: View, form: Form) -> float:
    """What stands between the tokens of a sample and the padding (0 for attention maps, the
    lowest number for scores)."""
    if len(form.axes) < 2:
        return 0.0
    (last, mask), before = form.axes[-1], form._replace(shape=_but_last(form.shape))
    outside: list[Tensor] = []
    for pair in (pair for pair in view.pairs if pair.mask == mask):
        span = pair.samples.spans[mask]
        for r in range(len(pair.samples.keys)):
            row = before.cut(pair.long[r], pair.samples.spans, r)
            a, b = span.start[r], span.stop[r]
            outside += [row.narrow(last, 0, a), row.narrow(last, b, span.length - b)]
    flat = torch.cat([x.reshape(-1) for x in outside]).cpu()
    if not flat.numel():
        return 0.0
    if bool((flat != flat[0]).any()) or not bool(flat[0].isfinite()):
        raise _Flaw(
            "relates the tokens of a sample to its padding. Keep whole rows of batches of one "
            "length: cache(..., mask=None)."
        )
    return float(flat[0])


def _but_last(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape in which the last axis that is as long as the sample is one of the batch's."""
    last = max(axis for axis, n in enumerate(shape) if n < 0)
    return tuple(0 if axis == last else n for axis, n in enumerate(shape))
