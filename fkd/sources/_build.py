"""A cache while it is made: which samples are there, what is pending, and when a shard is full."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fkd._mean import Mean
from fkd._objective.objective import Objective
from fkd._refs.refs import Ref
from fkd._trees import map_tensors
from fkd._types import Batch
from fkd.loops._data.batch import normalised
from fkd.loops._files import digest, discard
from fkd.loops._state import device_of

from ._errors import SourceError
from ._header import Header, read_header, write_header
from ._keep import DRAWS, seeds_of
from ._kept import Kept, refuse_difference, replaced_padding
from ._live import Teacher
from ._probe import Found
from ._rows import Form, Samples
from ._store import Record, Shard, write_shard
from ._structure import rebuilt, structure_of


class Build:
    """A cache that is being made."""

    def __init__(
        self,
        objective: Objective,
        found: Found,
        teacher: Teacher,
        folder: Path,
        header: Header,
        shard_bytes: int,
    ) -> None:
        self.objective, self.found, self.teacher = objective, found, teacher
        self.folder, self.shard_bytes = folder, shard_bytes
        self.header = _resumed(folder, header)
        self.pending: list[Record] = []
        self.bytes = 0
        self.tried = self.padding_seen = False
        self.done: set[bytes] = set()
        if self.header.shards:
            write_header(folder, self.header)
            self.done = {k.tobytes() for s in Kept(folder).shards for k in s.keys}

    def add(self, batch: Batch, index: int) -> None:
        """The samples of a batch that are not there yet; those of a whole batch end a shard."""
        samples = self.found.reading.samples(batch)
        new: dict[bytes, int] = {}
        for r, one in enumerate(samples.keys):
            if one.tobytes() not in self.done:
                new.setdefault(one.tobytes(), r)
        if not new:
            return
        leaves: list[Tensor] = []
        values = self.teacher(self._with_draws(batch, samples), index)
        for ref, value in zip(self.found.refs, values, strict=True):
            structure_of(value, leaves)
            self._expect_forms(ref, leaves, samples)
        if not self.tried:
            _expect_terms_take(self.objective, self.found, values, batch)
            self.tried = True
        if samples.padded and not self.padding_seen and not self.objective.problems:
            self.padding_seen = True
            _expect_unread_padding(self.objective, self.found, values, batch, samples)
        leaves = [x.detach().cpu() for x in leaves]
        for r in new.values():
            self._record(samples, leaves, r)
        self.done |= set(new)
        if self.bytes >= self.shard_bytes:
            self.flush()

    def _with_draws(self, batch: Batch, samples: Samples) -> Batch:
        """The batch with the seeds of its samples, which only those refs read that draw."""
        assert isinstance(batch, Mapping)
        return {**batch, DRAWS: seeds_of(samples)}

    def _expect_forms(self, ref: Ref, leaves: Sequence[Tensor], samples: Samples) -> None:
        for form, x in zip(self.found.forms, leaves, strict=False):
            expected = (len(samples.keys), *form.shape_of(samples.length))
            if tuple(x.shape) != expected or x.dtype != form.live:
                raise SourceError(
                    f"cache: {ref!r} gives {tuple(x.shape)} of {x.dtype} on a batch, and "
                    f"{expected} of {form.live} is expected after the first one. Where samples "
                    "are of several lengths, the batches need an attention_mask: "
                    "cache(..., mask='attention_mask')."
                )

    def _record(self, samples: Samples, leaves: Sequence[Tensor], r: int) -> None:
        start, stop = samples.start[r], samples.stop[r]
        values: list[Tensor] = []
        for form, x in zip(self.found.forms, leaves, strict=True):
            row = form.cut(x[r], start, stop)
            stored = row.to(form.dtype).contiguous()
            if form.dtype != form.live and _lost(row, stored):
                raise SourceError(
                    f"cache: {samples.names[r]} has a value of {row.double().abs().max():.4g}, "
                    f"which {form.dtype} cannot hold. Keep it in a wider dtype: exact(...)."
                )
            values.append(stored)
            self.bytes += stored.numel() * stored.element_size()
        self.pending.append(Record(samples.keys[r], samples.inputs[r], stop - start, values))

    def flush(self) -> None:
        """Write what is pending as a shard, and then name it in the header."""
        if not self.pending:
            return
        used = {shard.file for shard in self.header.shards}
        numbers = (f"{i:05d}.safetensors" for i in range(len(used) + 1))
        file = next(name for name in numbers if name not in used)
        shard = write_shard(self.folder, file, self.pending)
        self.pending, self.bytes = [], 0
        self.header = self.header._replace(shards=[*self.header.shards, shard])
        write_header(self.folder, self.header)

    def finish(self) -> None:
        """The loader came to its end."""
        self.flush()
        self.header = self.header._replace(complete=True)
        write_header(self.folder, self.header)


def _lost(row: Tensor, stored: Tensor) -> bool:
    """Whether numbers do not fit: integers are other ones, finite numbers are not finite."""
    back = stored.to(row.dtype)
    if not row.is_floating_point():
        return not torch.equal(back, row)
    return bool((row.isfinite() & ~back.isfinite()).any())


def _resumed(folder: Path, header: Header) -> Header:
    """The header that is there, with the shards that are whole; or the new one."""
    there = read_header(folder)
    if there is None:
        return header
    names = ("refs", "forms", "models", "precision", "about")
    saved, here = there._asdict(), header._asdict()
    refuse_difference(
        f"cache: {folder}",
        {**{n: saved[n] for n in names}, "reading": _reading(there)},
        {**{n: here[n] for n in names}, "reading": _reading(header)},
    )
    whole: list[Shard] = []
    for shard in there.shards:
        path = folder / shard.file
        if path.is_file() and digest(path) == (shard.size, shard.sha256):
            whole.append(shard)
        else:
            warnings.warn(f"cache: {path} is damaged or missing; it is made again.", stacklevel=4)
            discard(path)
    return there._replace(shards=whole)


def _reading(header: Header) -> dict[str, Any]:
    return {**header.reading._asdict(), "fields": list(header.reading.fields)}


def _expect_unread_padding(
    objective: Objective, found: Found, values: Sequence[Any], batch: Batch, samples: Samples
) -> None:
    """Refuse terms whose value depends on what the teacher says of padding.

    Raises:
      SourceError: names the term.
    """
    leaves: list[Tensor] = []
    structures = [structure_of(value, leaves) for value in values]
    placed = [
        replaced_padding(_own_dtype(form), x, samples)
        for form, x in zip(found.forms, leaves, strict=True)
    ]
    kept = [rebuilt(structure, placed) for structure in structures]
    means = [_means(objective, found, given, batch) for given in (_plain(values), kept)]
    for name, mean in means[0].items():
        a, b = float(mean.value), float(means[1][name].value)
        if abs(a - b) > 1e-4 * max(abs(a), abs(b)):
            raise SourceError(
                f"cache: term {name!r} reads what the teacher says of padding: it is {a:.6g} with "
                f"it and {b:.6g} without. Give the term where=batch.{found.reading.mask}; or, with "
                "batches of one length, keep whole rows: cache(..., mask=None)."
            )


def _expect_terms_take(
    objective: Objective, found: Found, values: Sequence[Any], batch: Batch
) -> None:
    """Refuse to keep less of a value than the terms can read, before anything is written.

    Raises:
      SourceError: a term cannot be computed from what would be kept.
    """
    if found.refs == found.computed or objective.problems:
        return
    try:
        _means(objective, found, _plain(values), batch)
    except SourceError:
        raise
    except ValueError as error:
        raise SourceError(f"cache: a term cannot read what would be kept. {error}") from error


def _plain(values: Sequence[Any]) -> list[Any]:
    """Values as the terms get them: what was scaled is scaled back."""
    leaves: list[Tensor] = []
    structures = [structure_of(value, leaves) for value in values]
    return [rebuilt(structure, leaves) for structure in structures]


def _means(
    objective: Objective, found: Found, values: Sequence[Any], batch: Batch
) -> dict[str, Mean]:
    """Every term of the objective on a batch, with the kept values given."""
    goal = objective.evaluating()
    parts = goal.init()
    where = device_of(parts.trainable)
    given = [map_tensors(lambda x: x.to(where), value) for value in values]
    with torch.no_grad():
        ctx = goal.program.context(parts, normalised(batch, where)).context
        return goal.evaluate(
            goal.program.values(ctx, dict(zip(found.refs, given, strict=True))),
            goal.scalars(0, where),
            parts.loss_state,
        ).means


def _own_dtype(form: Form) -> Form:
    return form._replace(dtype=form.live)
