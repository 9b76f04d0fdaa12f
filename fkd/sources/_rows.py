"""The samples of a batch: which they are, and what of a value belongs to each of them."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fkd._base.errors import listing
from fkd._base.types import Batch
from fkd.loops._data.batch import leaves, normalised
from fkd.loops._data.fields import Field, as_fields

from ._errors import SourceError


class Span(NamedTuple):
    """Where the tokens of each sample are, by one mask.

    Attributes:
      start, stop: `[rows]`, where they begin and end.
      length: of the batch, padding included.
    """

    start: list[int]
    stop: list[int]
    length: int

    @property
    def sizes(self) -> list[int]:
        """How many tokens each sample has."""
        return [b - a for a, b in zip(self.start, self.stop, strict=True)]


class Samples(NamedTuple):
    """The samples of a batch.

    Attributes:
      keys: `[rows, 2]` uint64, by which they are looked up.
      inputs: `[rows, 2]` uint64, a digest of what the teacher reads of each.
      names: how a person would call each.
      spans: their tokens by each mask; none where samples are of one size.
    """

    keys: npt.NDArray[np.uint64]
    inputs: npt.NDArray[np.uint64]
    names: list[str]
    spans: tuple[Span, ...]

    def sizes(self, row: int) -> tuple[int, ...]:
        """How many tokens a sample has, by each mask."""
        return tuple(span.stop[row] - span.start[row] for span in self.spans)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of the batch, by each mask, padding included."""
        return tuple(span.length for span in self.spans)

    @property
    def padded(self) -> bool:
        """Whether one of them is shorter than the batch."""
        return any(size < span.length for span in self.spans for size in span.sizes)


class Reading(NamedTuple):
    """How the samples of a batch are recognised; a part of a cache's header.

    Attributes:
      fields: of the batch, that the teacher reads; of a tuple, their places.
      key: the field with the name of each sample; None: they are known by what the teacher reads.
      masks: the fields that are 1 where a sample has a token; none: all samples are of one size.
    """

    fields: tuple[Field, ...]
    key: Field | None
    masks: tuple[Field, ...]

    def samples(self, batch: Batch) -> Samples:
        """The samples of a batch.

        Raises:
          SourceError: a field is missing, or not one with a row for each sample.
        """
        fields = as_fields(batch)
        wanted = [n for n in (*self.fields, self.key, *self.masks) if n is not None]
        missing = [name for name in wanted if name not in fields]
        if missing:
            raise SourceError(
                f"the batch has no field {missing[0]!r}, by which samples are recognised. "
                f"It has: {listing(map(str, fields))}."
            )
        here: Any = {name: fields[name] for name in self.fields}
        parts: Any = normalised(here)
        tensors = [(place, x.detach().cpu()) for place, x in leaves(parts)]
        rows = next((x.shape[0] for _, x in tensors if x.ndim), 0)
        spans = tuple(_span(fields[name], name, rows) for name in self.masks)
        of = [self.mask_of(place, x, spans) for place, x in tensors]
        inputs = [_input(tensors, of, r, rows, spans) for r in range(rows)]
        ids = None if self.key is None else _ids(fields[self.key], self.key, rows)
        keys = inputs if ids is None else [_hash([repr(i).encode()]) for i in ids]
        names = [f"row {r} of the batch" for r in range(rows)] if ids is None else \
                [f"sample {i!r}" for i in ids]  # fmt: skip
        return Samples(_words(keys), _words(inputs), names, spans)

    def mask_of(self, place: str, x: Tensor, spans: Sequence[Span]) -> int | None:
        """Which mask a tensor of the batch goes with: one that is as long as its second axis; of
        several, that whose name begins as the tensor's (`decoder_input_ids` and
        `decoder_attention_mask`). None: it is not padded."""
        long = [m for m, span in enumerate(spans) if x.ndim > 1 and x.shape[1] == span.length]
        if len(long) < 2:
            return long[0] if long else None
        every = [str(name) for name in self.masks]
        stem = common_end(every)
        begins = [m for m in long if f"[{every[m].removesuffix(stem)}" in place.replace("'", "")]
        return max(begins or long[:1], key=lambda m: len(every[m]))

    def keys(self, batch: Batch) -> npt.NDArray[np.uint64]:
        """`[rows, 2]`, the keys of the samples of a batch alone.

        Raises:
          SourceError: as `samples`.
        """
        fields = as_fields(batch)
        if self.key is None or self.key not in fields:
            return self.samples(batch).keys
        field: Any = fields[self.key]
        return _words([_hash([repr(i).encode()]) for i in _ids(field, self.key, len(field))])


def common_end(names: Sequence[str]) -> str:
    """The end that all names have.

    Example:
      >>> common_end(["attention_mask", "decoder_attention_mask"])
      'attention_mask'
    """
    backwards = zip(*(reversed(name) for name in names), strict=False)
    shared = itertools.takewhile(lambda letters: len(set(letters)) == 1, backwards)
    return "".join(letters[0] for letters in shared)[::-1]


def _span(field: Any, name: Field, rows: int) -> Span:
    mask = torch.as_tensor(field).detach().cpu().bool().numpy()
    if mask.ndim != 2 or mask.shape[0] != rows:
        raise SourceError(
            f"the mask {name!r} has shape {mask.shape}; [samples, length] is expected, "
            f"with {rows} samples. Without a mask: cache(..., mask=None)."
        )
    length, none = mask.shape[1], ~mask.any(1)
    start = np.where(none, 0, mask.argmax(1))
    stop = np.where(none, 0, length - mask[:, ::-1].argmax(1))
    return Span(start.tolist(), stop.tolist(), length)


def _input(
    tensors: Sequence[tuple[str, Tensor]],
    of: Sequence[int | None],
    r: int,
    rows: int,
    spans: Sequence[Span],
) -> bytes:
    def parts() -> Iterator[bytes]:
        for (place, x), mask in zip(tensors, of, strict=True):
            entry = x[r] if x.ndim and x.shape[0] == rows else x
            if mask is not None and entry is not x:
                entry = entry[spans[mask].start[r] : spans[mask].stop[r]]
            kind = "float" if entry.is_floating_point() else "int"
            entry = entry.to(torch.float64 if kind == "float" else torch.int64).contiguous()
            yield f"{place} {kind} {list(entry.shape)}".encode()
            yield entry.numpy().tobytes()

    return _hash(parts())


def _ids(field: Any, name: Field, rows: int) -> list[Any]:
    ids = field.tolist() if isinstance(field, Tensor | np.ndarray) else list(field)
    if len(ids) != rows or not all(isinstance(i, int | str) for i in ids):
        raise SourceError(
            f"the field {name!r} has {len(ids)} entries such as {ids[:2]!r}; one integer or text "
            f"for each of the {rows} samples is expected."
        )
    return ids


def _hash(parts: Any) -> bytes:
    hashed = hashlib.blake2b(digest_size=16)
    for part in parts:
        hashed.update(len(part).to_bytes(8, "little") + part)
    return hashed.digest()


def _words(digests: Sequence[bytes]) -> npt.NDArray[np.uint64]:
    return np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2).astype(np.uint64)


class Form(NamedTuple):
    """The form of one kept tensor.

    Attributes:
      dtype: in which it is stored.
      live: in which the teacher gives it, and it is given again.
      shape: of one sample; for an axis that is as long as the tokens of mask m, -1 - m.
      fill: what stands where a batch has padding.
    """

    dtype: torch.dtype
    live: torch.dtype
    shape: tuple[int, ...]
    fill: float

    @property
    def axes(self) -> list[tuple[int, int]]:
        """The axes that are as long as the sample, each with the number of its mask."""
        return [(axis, -1 - n) for axis, n in enumerate(self.shape) if n < 0]

    def shape_of(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """The shape of a sample with so many tokens by each mask."""
        return tuple(sizes[-1 - n] if n < 0 else n for n in self.shape)

    def cut(self, x: Tensor, spans: Sequence[Span], row: int) -> Tensor:
        """What of a row of a batch belongs to its sample."""
        for axis, mask in self.axes:
            start, stop = spans[mask].start[row], spans[mask].stop[row]
            x = x.narrow(axis, start, stop - start)
        return x

    def place(self, records: Sequence[Tensor], samples: Samples) -> Tensor:
        """The rows of a batch from the records of its samples."""
        shape = (len(records), *self.shape_of(samples.lengths))
        rows = torch.full(shape, self.fill, dtype=self.live) if self.axes else \
               torch.empty(shape, dtype=self.live)  # fmt: skip
        for r, record in enumerate(records):
            self.cut(rows[r], samples.spans, r).copy_(record)
        return rows

    def to_json(self) -> dict[str, Any]:
        """As a part of a header."""
        names = [str(d).removeprefix("torch.") for d in (self.dtype, self.live)]
        return {"dtype": names[0], "live": names[1], "shape": list(self.shape), "fill": self.fill}
