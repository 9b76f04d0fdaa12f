"""A cache while it is made: which samples are there, what is pending, and when a shard is full."""

from __future__ import annotations

import collections
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fkd._base.mean import Mean
from fkd._base.trees import map_tensors
from fkd._base.types import Batch
from fkd._objective.objective import Objective
from fkd._refs.refs import Ref
from fkd.loops._base.files import discard
from fkd.loops._base.state import device_of
from fkd.loops._data.batch import normalised
from fkd.loops._data.fields import with_fields

from ._errors import SourceError
from ._header import Header, read_header, write_header
from ._keep import seeds_of
from ._kept import refuse_difference, replaced_padding
from ._live import Teacher
from ._parts import Meeting, Share, inputs_of, is_whole, part_header
from ._probe import Contents
from ._rows import Form, Samples
from ._store import Record, Shard, write_shard
from ._structure import rebuilt, structure_of
from ._workers import Workers

BEHIND = 2
"""How many batches the writing may be behind the teacher."""


class Place(NamedTuple):
    """Where a cache is made.

    Attributes:
      folder: of the cache.
      share: of this process.
      shard_bytes: size of a file.
    """

    folder: Path
    share: Share
    shard_bytes: int


class Build:
    """A cache that is being made, by this process or by several.

    The teacher runs in the thread of the caller. What it says is cut into samples, hashed and
    written in a thread beside it, a few batches behind.
    """

    def __init__(
        self,
        objective: Objective,
        contents: Contents,
        teacher: Teacher,
        header: Header,
        place: Place,
    ) -> None:
        self.objective, self.contents = objective, contents
        self.teacher, self.place = teacher, place
        self.header, damaged = _resumed(place, header)
        self.meeting = Meeting(place.folder, place.share, damaged)
        self.pending: list[Record] = []
        self.bytes = 0
        self.tried = self.padding_seen = False
        kept = [shard for shard in self.header.shards if shard not in damaged]
        self.done = inputs_of(place.folder, self.header._replace(shards=kept))
        shards = [shard for shard in kept if shard.file.startswith(place.share.place)]
        self.header = self.header._replace(shards=shards)
        self.seen: dict[bytes, bytes] = {}  # keys of samples, with what the teacher reads of them
        self._writer = Workers(1, "fkd cache")
        self._failed = False  # after which nothing more is written
        self._behind: collections.deque[Future[None]] = collections.deque()
        if shards:
            self._write_header()

    def add(self, batch: Batch, index: int) -> None:
        """The samples of a batch that are not there yet; those of a whole batch end a shard."""
        share = self.place.share
        if not share.owns(index):
            others = (k.tobytes() for k in self.contents.reading.keys(batch))
            self.seen.update((key, self.seen.get(key, b"")) for key in others)
            return
        samples = self.contents.reading.samples(batch)
        new: dict[bytes, int] = {}
        for r, (key, read) in enumerate(zip(samples.keys, samples.inputs, strict=True)):
            known = self.done.get(key.tobytes()) or self.seen.get(key.tobytes())
            if known and known != read.tobytes():
                of = self.contents.reading
                raise SourceError(
                    f"cache: {samples.names[r]} comes twice, or is kept already, with other "
                    f"inputs ({', '.join(map(str, of.fields))}). Each sample needs a {of.key!r} of "
                    "its own, and one input (no augmentation)."
                )
            if known is None:
                new.setdefault(key.tobytes(), r)
            self.seen[key.tobytes()] = read.tobytes()
        if not new:
            return
        leaves: list[Tensor] = []
        values = self.teacher(self._with_draws(batch, samples), index)
        for ref, value in zip(self.contents.refs, values, strict=True):
            structure_of(value, leaves)
            self._expect_forms(ref, leaves, samples)
        if not self.tried:
            _expect_terms_take(self.objective, self.contents, values, batch)
            self.tried = True
        if samples.padded and not self.padding_seen and not self.objective.problems:
            self.padding_seen = True
            _expect_unread_padding(self.objective, self.contents, values, batch, samples)
        leaves = [x.detach() for x in leaves]
        while len(self._behind) >= BEHIND:
            self._behind.popleft().result()
        self._behind.append(self._writer.submit(self._keep, samples, leaves, list(new.values())))

    def _with_draws(self, batch: Batch, samples: Samples) -> Batch:
        """The batch with the seeds of its samples, which only those refs read that draw."""
        return with_fields(batch, seeds_of(samples))

    def _expect_forms(self, ref: Ref, leaves: Sequence[Tensor], samples: Samples) -> None:
        for form, x in zip(self.contents.forms, leaves, strict=False):
            expected = (len(samples.keys), *form.shape_of(samples.lengths))
            if tuple(x.shape) != expected or x.dtype != form.live:
                raise SourceError(
                    f"cache: {ref!r} gives {tuple(x.shape)} of {x.dtype} on a batch, and "
                    f"{expected} of {form.live} is expected after the first one. Where samples "
                    "are of several lengths, the batches need an attention_mask: "
                    "cache(..., mask='attention_mask'). Of a teacher of another frame rate pad "
                    "every sample to one length."
                )

    # In the thread

    def _keep(self, samples: Samples, leaves: Sequence[Tensor], rows: Sequence[int]) -> None:
        """The records of some rows of a batch; a shard, if they are enough for one."""
        if self._failed:
            return
        self._failed = True
        host = [x.cpu() for x in leaves]
        for r in rows:
            self._record(samples, host, r)
        if self.bytes >= self.place.shard_bytes:
            self._flush()
        self._failed = False

    def _record(self, samples: Samples, leaves: Sequence[Tensor], r: int) -> None:
        values: list[Tensor] = []
        for form, x in zip(self.contents.forms, leaves, strict=True):
            row = form.cut(x[r], samples.spans, r)
            stored = row.to(form.dtype).contiguous()
            if form.dtype != form.live and _lost(row, stored):
                raise SourceError(
                    f"cache: {samples.names[r]} has a value of {row.double().abs().max():.4g}, "
                    f"which {form.dtype} cannot hold. Keep it in a wider dtype: exact(...)."
                )
            values.append(stored)
            self.bytes += stored.numel() * stored.element_size()
        self.pending.append(Record(samples.keys[r], samples.inputs[r], samples.sizes(r), values))

    def _flush(self) -> None:
        """Write what is pending as a shard, and then name it in the header."""
        if not self.pending:
            return
        used = {shard.file for shard in self.header.shards}
        begin = self.place.share.place
        numbers = (f"{begin}{i:05d}.safetensors" for i in range(len(used) + 1))
        file = next(name for name in numbers if name not in used)
        shard = write_shard(self.place.folder, file, self.pending)
        self.pending, self.bytes = [], 0
        self.header = self.header._replace(shards=[*self.header.shards, shard])
        self._write_header()

    def _write_header(self) -> None:
        write_header(part_header(self.place.folder, self.place.share), self.header)

    # In that of the caller

    def finish(self) -> None:
        """The loader came to its end."""
        self.settle()
        self._flush()
        self.meeting.join(set(self.seen))

    def settle(self) -> None:
        """Wait for what is behind.

        Raises:
          SourceError: a number does not fit its dtype.
          OSError: it cannot be written.
        """
        while self._behind:
            self._behind.popleft().result()

    def close(self) -> None:
        """End the thread; what it has to do still is done, if it can be."""
        wait(self._behind)
        self._writer.close()


def _lost(row: Tensor, stored: Tensor) -> bool:
    """Whether numbers do not fit: integers are other ones, finite numbers are not finite."""
    back = stored.to(row.dtype)
    if not row.is_floating_point():
        return not torch.equal(back, row)
    return bool((row.isfinite() & ~back.isfinite()).any())


def _resumed(place: Place, header: Header) -> tuple[Header, list[Shard]]:
    """The header that is there or the new one, and those of its shards that are not whole."""
    there = read_header(place.folder)
    if there is None:
        return header, []
    names = ("refs", "forms", "models", "precision", "about")
    saved, here = there._asdict(), header._asdict()
    refuse_difference(
        f"cache: {place.folder}",
        {**{n: saved[n] for n in names}, "reading": _reading(there)},
        {**{n: here[n] for n in names}, "reading": _reading(header)},
    )
    damaged = [shard for shard in there.shards if not is_whole(place.folder, shard)]
    for shard in damaged:
        path = place.folder / shard.file
        warnings.warn(f"cache: {path} is damaged or missing; it is made again.", stacklevel=5)
        if shard.file.startswith(place.share.place):
            discard(path)
    return there._replace(complete=there.complete and not damaged), damaged


def _reading(header: Header) -> dict[str, Any]:
    return {name: list(x) if isinstance(x, tuple) else x
            for name, x in header.reading._asdict().items()}  # fmt: skip


def _expect_unread_padding(
    objective: Objective, contents: Contents, values: Sequence[Any], batch: Batch, samples: Samples
) -> None:
    """Refuse terms whose value depends on what the teacher says of padding.

    Raises:
      SourceError: names the term.
    """
    leaves: list[Tensor] = []
    structures = [structure_of(value, leaves) for value in values]
    placed = [
        replaced_padding(_own_dtype(form), x, samples)
        for form, x in zip(contents.forms, leaves, strict=True)
    ]
    kept = [rebuilt(structure, placed) for structure in structures]
    means = [_means(objective, contents, each, batch) for each in (_plain(values), kept)]
    for name, mean in means[0].items():
        a, b = float(mean.value), float(means[1][name].value)
        if abs(a - b) > 1e-4 * max(abs(a), abs(b)):
            mask = contents.reading.masks[0]
            raise SourceError(
                f"cache: term {name!r} reads what the teacher says of padding: it is {a:.6g} with "
                f"it and {b:.6g} without. Give the term where=batch.{mask}; or, "
                "batches of one length, keep whole rows: cache(..., mask=None)."
            )


def _expect_terms_take(
    objective: Objective, contents: Contents, values: Sequence[Any], batch: Batch
) -> None:
    """Refuse to keep less of a value than the terms can read, before anything is written.

    Raises:
      SourceError: a term cannot be computed from what would be kept.
    """
    if contents.refs == contents.computed or objective.problems:
        return
    try:
        _means(objective, contents, _plain(values), batch)
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
    objective: Objective, contents: Contents, values: Sequence[Any], batch: Batch
) -> dict[str, Mean]:
    """Every term of the objective on a batch, with the kept values given."""
    goal = objective.evaluating()
    parts = goal.init()
    where = device_of(parts.trainable)
    moved = [map_tensors(lambda x: x.to(where), value) for value in values]
    with torch.no_grad():
        ctx = goal.program.context(parts, normalised(batch, where)).context
        return goal.evaluate(
            goal.program.values(ctx, dict(zip(contents.refs, moved, strict=True))),
            goal.scalars(0, where),
            parts.loss_state,
        ).means


def _own_dtype(form: Form) -> Form:
    return form._replace(dtype=form.live)
