"""The samples of a batch: which they are, and what of a value belongs to each of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fkd._base.errors import listing
from fkd._base.types import Batch
from fkd.loops._data.batch import leaves, normalised

from ._errors import SourceError


class Samples(NamedTuple):
    """The samples of a batch.

    Attributes:
      keys: `[rows, 2]` uint64, by which they are looked up.
      inputs: `[rows, 2]` uint64, a digest of what the teacher reads of each.
      names: how a person would call each.
      start, stop: `[rows]`, where the tokens of each begin and end; 0 without a mask.
      length: of the batch, padding included; 0 without a mask.
    """

    keys: npt.NDArray[np.uint64]
    inputs: npt.NDArray[np.uint64]
    names: list[str]
    start: list[int]
    stop: list[int]
    length: int

    @property
    def sizes(self) -> list[int]:
        """How many tokens each has."""
        return [b - a for a, b in zip(self.start, self.stop, strict=True)]

    @property
    def padded(self) -> bool:
        """Whether one of them is shorter than the batch."""
        return any(size < self.length for size in self.sizes)


class Reading(NamedTuple):
    """How the samples of a batch are recognised; a part of a cache's header.

    Attributes:
      fields: of the batch, that the teacher reads.
      key: the field with the name of each sample; None: they are known by what the teacher reads.
      mask: the field that is 1 where a sample has a token; None: all samples are of one size.
    """

    fields: tuple[str, ...]
    key: str | None
    mask: str | None

    def samples(self, batch: Batch) -> Samples:
        """The samples of a batch.

        Raises:
          SourceError: a field is missing, or not one with a row for each sample.
        """
        if not isinstance(batch, Mapping):
            raise SourceError(
                f"a batch is a {type(batch).__name__}; a dict of fields is expected, by which "
                "samples are recognised. Name the parts in the loader's collate_fn."
            )
        wanted = [n for n in (*self.fields, self.key, self.mask) if n is not None]
        missing = [name for name in wanted if name not in batch]
        if missing:
            raise SourceError(
                f"the batch has no field {missing[0]!r}, by which samples are recognised. "
                f"It has: {listing(map(str, batch))}."
            )
        parts: Any = normalised({name: batch[name] for name in self.fields})
        tensors = [(place, x.detach().cpu()) for place, x in leaves(parts)]
        rows = next((x.shape[0] for _, x in tensors if x.ndim), 0)
        start, stop, length = self._ranges(batch, rows)
        inputs = [self._input(tensors, r, rows, start[r], stop[r], length) for r in range(rows)]
        ids = None if self.key is None else _ids(batch[self.key], self.key, rows)
        keys = inputs if ids is None else [_hash([repr(i).encode()]) for i in ids]
        names = [f"row {r} of the batch" for r in range(rows)] if ids is None else \
                [f"sample {i!r}" for i in ids]  # fmt: skip
        return Samples(_words(keys), _words(inputs), names, start, stop, length)

    def keys(self, batch: Batch) -> npt.NDArray[np.uint64]:
        """`[rows, 2]`, the keys of the samples of a batch alone.

        Raises:
          SourceError: as `samples`.
        """
        if self.key is None or not isinstance(batch, Mapping) or self.key not in batch:
            return self.samples(batch).keys
        field: Any = batch[self.key]
        return _words([_hash([repr(i).encode()]) for i in _ids(field, self.key, len(field))])

    def _ranges(self, batch: Mapping[str, Any], rows: int) -> tuple[list[int], list[int], int]:
        if self.mask is None:
            return [0] * rows, [0] * rows, 0
        mask = torch.as_tensor(batch[self.mask]).detach().cpu().bool().numpy()
        if mask.ndim != 2 or mask.shape[0] != rows:
            raise SourceError(
                f"the mask {self.mask!r} has shape {mask.shape}; [samples, length] is expected, "
                f"with {rows} samples. Without a mask: cache(..., mask=None)."
            )
        length, none = mask.shape[1], ~mask.any(1)
        start = np.where(none, 0, mask.argmax(1))
        stop = np.where(none, 0, length - mask[:, ::-1].argmax(1))
        return start.tolist(), stop.tolist(), length

    def _input(
        self, tensors: Sequence[tuple[str, Tensor]], r: int, rows: int, a: int, b: int, length: int
    ) -> bytes:
        def parts() -> Iterator[bytes]:
            for place, x in tensors:
                own = x[r] if x.ndim and x.shape[0] == rows else x
                if length and own is not x and own.ndim and own.shape[0] == length:
                    own = own[a:b]
                kind = "float" if own.is_floating_point() else "int"
                own = own.to(torch.float64 if kind == "float" else torch.int64).contiguous()
                yield f"{place} {kind} {list(own.shape)}".encode()
                yield own.numpy().tobytes()

        return _hash(parts())


def _ids(field: Any, name: str, rows: int) -> list[Any]:
    ids = field.tolist() if isinstance(field, Tensor | np.ndarray) else list(field)
    if len(ids) != rows or not all(isinstance(i, int | str) for i in ids):
        raise SourceError(
            f"the field {name!r} has {len(ids)} entries such as {ids[:2]!r}; one integer or text "
            f"for each of the {rows} samples is expected."
        )
    return ids


def _hash(parts: Any) -> bytes:
    made = hashlib.blake2b(digest_size=16)
    for part in parts:
        made.update(len(part).to_bytes(8, "little") + part)
    return made.digest()


def _words(digests: Sequence[bytes]) -> npt.NDArray[np.uint64]:
    return np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2).astype(np.uint64)


class Form(NamedTuple):
    """The form of one kept tensor.

    Attributes:
      dtype: in which it is stored.
      live: in which the teacher gives it, and it is given again.
      shape: of one sample; None for an axis that is as long as the sample.
      fill: what stands where a batch has padding.
    """

    dtype: torch.dtype
    live: torch.dtype
    shape: tuple[int | None, ...]
    fill: float

    @property
    def axes(self) -> list[int]:
        """The axes that are as long as the sample."""
        return [i for i, n in enumerate(self.shape) if n is None]

    def shape_of(self, size: int) -> tuple[int, ...]:
        """The shape of a sample with so many tokens."""
        return tuple(size if n is None else n for n in self.shape)

    def cut(self, row: Tensor, start: int, stop: int) -> Tensor:
        """What of a row of a batch belongs to the sample."""
        for axis in self.axes:
            row = row.narrow(axis, start, stop - start)
        return row

    def place(self, records: Sequence[Tensor], samples: Samples) -> Tensor:
        """The rows of a batch from the records of its samples."""
        shape = (len(records), *self.shape_of(samples.length))
        made = torch.full(shape, self.fill, dtype=self.live) if self.axes else \
               torch.empty(shape, dtype=self.live)  # fmt: skip
        for r, record in enumerate(records):
            self.cut(made[r], samples.start[r], samples.stop[r]).copy_(record)
        return made

    def to_json(self) -> dict[str, Any]:
        """As a part of a header."""
        names = [str(d).removeprefix("torch.") for d in (self.dtype, self.live)]
        return {"dtype": names[0], "live": names[1], "shape": list(self.shape), "fill": self.fill}
