"""Shards on the disk: the records of samples, each with its checksum, reached by position."""

from __future__ import annotations

import hashlib
import json
import math
import os
import weakref
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fkd.loops._base.files import CHUNK, discard, open_regular, sync_folder, write_file
from fkd.loops._checkpoint.tensors import chunks
from fkd.loops._checkpoint.tree import DTYPES

from ._errors import DamagedSourceError
from ._rows import Form

_INDEX = ("index/crc", "index/inputs", "index/keys", "index/sizes")


class Shard(NamedTuple):
    """What the header says of a shard.

    Attributes:
      file: its name in the folder.
      samples: how many.
      size, sha256: of the file.
      index_size, index_sha256: of its first bytes, up to the first value.
    """

    file: str
    samples: int
    size: int
    sha256: str
    index_size: int
    index_sha256: str


class Record(NamedTuple):
    """One sample as it is stored: `key` and `inputs` are digests, `sizes` are its tokens by each
    mask, `values` are the tensors."""

    key: npt.NDArray[np.uint64]
    inputs: npt.NDArray[np.uint64]
    sizes: tuple[int, ...]
    values: list[Tensor]


def write_shard(folder: Path, file: str, records: Sequence[Record]) -> Shard:
    """Write a shard, which is then there under its name, or not at all.

    The file is an ordinary safetensors file: `index/*` have a row for each sample, and `value/i`
    has the values of all samples, one after the other.
    """
    crc = [[zlib.crc32(_raw(x)) for x in record.values] for record in records]
    tensors = {
        "index/crc": _rows_of(crc),
        "index/inputs": torch.from_numpy(np.stack([r.inputs for r in records]).view(np.int64)),
        "index/keys": torch.from_numpy(np.stack([r.key for r in records]).view(np.int64)),
        "index/sizes": _rows_of([r.sizes for r in records]),
    }
    count = len(records[0].values)
    for i in range(count):
        tensors[f"value/{i}"] = torch.cat([r.values[i].reshape(-1) for r in records])
    index, index_size = hashlib.sha256(), 0
    path = folder / file
    beside = path.with_name(f".{path.name}.writing")
    discard(beside)
    pieces = list(chunks(tensors))
    for piece in pieces[: 1 + len(_INDEX)]:
        index.update(piece)
        index_size += memoryview(piece).nbytes
    digest = write_file(beside, pieces)
    discard(path)  # of a run that was killed before the header named it
    os.replace(beside, path)
    sync_folder(path.parent)
    return Shard(file, len(records), digest.size, digest.sha256, index_size, index.hexdigest())


def _rows_of(numbers: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64).reshape(len(numbers), -1)


def _raw(x: Tensor) -> memoryview:
    raw: Any = x.contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(raw)


class ShardReader:
    """The records of one shard, read by position. Nothing but its index is held in memory."""

    def __init__(self, folder: Path, shard: Shard, forms: Sequence[Form]) -> None:
        self.path, self.shard, self.forms = folder / shard.file, shard, forms
        self._file: int | None = None  # which forked processes may share
        raw = self._index_bytes()
        index, ends = self._parsed(raw)
        self.keys = index["index/keys"].view(np.uint64)
        self.inputs = index["index/inputs"].view(np.uint64)
        self.sizes, self._crc = index["index/sizes"], index["index/crc"]
        self._starts: list[npt.NDArray[np.int64]] = []
        for i, form in enumerate(forms):
            unit = form.dtype.itemsize * math.prod(n for n in form.shape if n >= 0)
            lengths = unit * self.sizes[:, [mask for _, mask in form.axes]].prod(1)
            start, end = ends[f"value/{i}"]
            self._starts.append(start + np.concatenate([[0], np.cumsum(lengths)]))
            if self._starts[i][-1] != end:
                raise self._damaged("its values are not as long as its index says")

    def read(self, row: int) -> list[Tensor]:
        """The values of a sample.

        Raises:
          DamagedSourceError: they are not, byte for byte, what was written.
        """
        values: list[Tensor] = []
        for i, form in enumerate(self.forms):
            start, end = int(self._starts[i][row]), int(self._starts[i][row + 1])
            buffer = bytearray(self._bytes(start, end - start))
            if zlib.crc32(buffer) != int(self._crc[row, i]):
                raise self._damaged(f"the values of its sample {row} do not fit their checksum")
            shape = form.shape_of(self.sizes[row].tolist())
            empty = torch.empty(shape, dtype=form.dtype)
            flat = torch.frombuffer(buffer, dtype=form.dtype) if buffer else empty
            values.append(flat.reshape(shape))
        return values

    def _bytes(self, start: int, size: int) -> bytes:
        try:
            if self._file is None:
                with open_regular(self.path) as file:
                    self._file = os.dup(file.fileno())
                weakref.finalize(self, os.close, self._file)
            raw = _read_at(self._file, size, start)
        except OSError as error:
            raise self._damaged(f"it cannot be read: {error.strerror or error}") from error
        if len(raw) != size:
            raise self._damaged("it is cut short")
        return raw

    def _index_bytes(self) -> bytes:
        try:
            size = self.path.stat().st_size
        except OSError as error:
            raise self._damaged(f"it cannot be read: {error.strerror}") from error
        if size != self.shard.size:
            raise self._damaged(f"it has {size} bytes, and {self.shard.size} were written")
        raw = self._bytes(0, self.shard.index_size)
        if hashlib.sha256(raw).hexdigest() != self.shard.index_sha256:
            raise self._damaged("its index does not fit its checksum")
        return raw

    def _parsed(self, raw: bytes) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
        length = int.from_bytes(raw[:8], "little")
        header: Mapping[str, Any] = json.loads(raw[8 : 8 + length])
        ends = {
            name: (8 + length + about["data_offsets"][0], 8 + length + about["data_offsets"][1])
            for name, about in header.items()
        }
        index = {
            name: np.frombuffer(raw[ends[name][0] : ends[name][1]], "<i8").reshape(
                header[name]["shape"]
            )
            for name in _INDEX
        }
        return index, ends

    def _damaged(self, why: str) -> DamagedSourceError:
        return DamagedSourceError(
            f"{self.path} is damaged: {why}. Delete it, and make the cache again: the shards "
            "that are whole are kept."
        )


def _read_at(descriptor: int, size: int, start: int) -> bytes:
    """Bytes of a file, without moving a position that others use."""
    pieces: list[bytes] = []
    while size > 0:
        if hasattr(os, "pread"):
            piece = os.pread(descriptor, min(size, CHUNK), start)
        else:
            os.lseek(descriptor, start, os.SEEK_SET)
            piece = os.read(descriptor, min(size, CHUNK))
        if not piece:
            break
        pieces.append(piece)
        start, size = start + len(piece), size - len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def form_of(about: Mapping[str, Any]) -> Form:
    """The form that `Form.to_json` described."""
    return Form(DTYPES[about["dtype"]], DTYPES[about["live"]], tuple(about["shape"]), about["fill"])
