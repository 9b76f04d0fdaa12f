"""A cache on the disk as a source."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fkd._base.errors import expect
from fkd._base.sparse import TopKDistribution
from fkd._base.types import Batch
from fkd._objective.objective import Objective
from fkd._refs.refs import Ref
from fkd.loops._base.files import digest
from fkd.loops._checkpoint.manifest import differences
from fkd.loops._data.epochs import Loader

from ._errors import DamagedSourceError, MissError, SourceError
from ._header import NAME, Header, read_header
from ._identity import describe_model, describe_tokenizer, identity
from ._parameters import read_parameters, verify_parameters
from ._rows import Form, Samples
from ._source import AttachedCollate, attach
from ._store import ShardReader, form_of
from ._structure import indices, is_sparse, rebuilt, structure_of


class Kept:
    """What a teacher said of samples, on the disk; `open` and `cache` give it.

    Attributes:
      folder: where it is.
      header: what it says of itself.
      name: of the source.
      place: in words, for `check` and `draw`.
      shards: their readers.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        header = read_header(self.folder)
        if header is None:
            raise SourceError(
                f"open: {self.folder} has no {NAME}. Make the cache first: "
                "fkd.sources.cache(objective, loader, folder)."
            )
        self.header: Header = header
        self.name = header.name
        self.place = f"cached in {self.folder}"
        self._forms = [form_of(about) for about in header.forms]
        self.shards = [ShardReader(self.folder, s, self._forms) for s in header.shards]
        keys = [reader.keys for reader in self.shards] or [np.empty((0, 2), np.uint64)]
        joined = np.concatenate(keys)
        self._order = np.argsort(joined[:, 0], kind="stable")
        self._keys = joined[self._order]
        self._ends = np.cumsum([0, *(len(k) for k in keys)])
        self._known: dict[Ref, str | None] = {}

    @property
    def codes(self) -> list[str]:
        """The refs whose values are kept, as code."""
        return [about["code"] for about in self.header.refs]

    def __len__(self) -> int:
        """How many samples there are."""
        return len(self._keys)

    def key(self, ref: Ref) -> str | None:
        """Under which key it gives the value of a ref; None if it does not."""
        if ref not in self._known:
            code, name = repr(ref), None
            for i, about in enumerate(self.header.refs):
                if about["code"] == code and about["identity"] == identity(ref):
                    name = f"v{i}"
            self._known[ref] = name
        return self._known[ref]

    def values(self, batch: Batch) -> dict[str, Any]:
        """The values for a batch by key, on the CPU.

        Raises:
          MissError: a sample is not in the cache, or has other inputs than those that the teacher
            saw; names the sample.
          DamagedSourceError: a shard is not what was written; names the file.
        """
        samples = self.header.reading.samples(batch)
        records = [self._record(samples, r) for r in range(len(samples.keys))]
        leaves = [
            form.place([record[i] for record in records], samples)
            for i, form in enumerate(self._forms)
        ]
        return self._by_key(leaves)

    def attach(self, loader: Loader) -> Loader:
        """The loader, with the kept values in its batches.

        Any order, any number of epochs, any batch sizes: a sample is found by its key. Give it to
        `fit` as the loader. With `DataLoader(num_workers=...)`, `attach_collate` reads in the
        workers instead.

        Args:
          loader: a `DataLoader`, any iterable, or a function of a seed.
        """
        return attach(self, loader)

    def attach_collate(self, collate: Callable[[Any], Batch]) -> AttachedCollate:
        """A `collate_fn` for a `DataLoader`, whose workers then read the values.

        Args:
          collate: makes a batch from rows.
        """
        return AttachedCollate(self, collate)

    def verify(self) -> None:
        """Read every file through, and compare it with its checksum.

        Raises:
          DamagedSourceError: names the file.
        """
        verify_parameters(self.folder, self.header.parameters)
        for shard in self.header.shards:
            if digest(self.folder / shard.file) != (shard.size, shard.sha256):
                raise DamagedSourceError(
                    f"{self.folder / shard.file} is damaged: its checksum does not fit."
                )

    def is_sparse(self, key: str) -> bool:
        """Whether a value is a distribution that is known on some classes."""
        return is_sparse(self.header.refs[int(key[1:])]["structure"])

    def parameters(self, model: str, names: Sequence[str]) -> dict[str, Tensor]:
        """Some parameters of the teacher, that the terms read beside its values (a head).

        Raises:
          SourceError: one of them was not kept.
          DamagedSourceError: their file is not what was written.
        """
        return read_parameters(self.folder, self.header.parameters, model, names)

    def verify_models(self, objective: Objective) -> None:
        """Compare the teacher in an objective, if it is there, with the one of the cache.

        Raises:
          SourceError: they differ; says in what.
        """
        for name, saved in self.header.models.items():
            model = objective.models.get(name)
            if model is None or model.module is None:
                continue
            refuse_difference(f"the cache {self.folder}", {name: saved},
                              {name: describe_model(model)})  # fmt: skip

    def verify_tokenizer(self, tokenizer: Any) -> None:
        """Compare a tokenizer with the one that the cache was made with.

        Raises:
          SourceError: they differ (says in what), or the cache was made without one.
        """
        saved = self.header.about.get("tokenizer")
        if saved is None:
            raise SourceError(
                f"the cache {self.folder} does not say which tokenizer it was made with. Make it "
                "with cache(..., tokenizer=tokenizer)."
            )
        refuse_difference(f"the cache {self.folder}", {"tokenizer": saved},
                          {"tokenizer": describe_tokenizer(tokenizer)})  # fmt: skip

    def like(self, batch: Batch, values: Mapping[str, Any]) -> dict[str, Any]:
        """Live values as they would be given by the cache, padding and dtypes included; of what is
        kept in part, that part of them."""
        samples = self.header.reading.samples(batch)
        return {
            f"v{i}": self._like(about, values[f"v{i}"], f"v{i}", samples, batch)
            for i, about in enumerate(self.header.refs)
            if f"v{i}" in values
        }

    def _like(
        self, about: Mapping[str, Any], live: Any, key: str, samples: Samples, batch: Batch
    ) -> Any:
        at = indices(about["structure"])
        forms = {j: self._forms[j] for j in at}
        if about["kept_identity"] == about["identity"]:
            rows: list[Tensor] = []
            structure_of(live, rows)
            pairs = zip(at, rows, strict=True)
            placed = {j: replaced_padding(forms[j], x, samples) for j, x in pairs}
            return rebuilt(about["structure"], placed)
        theirs = self.values(batch)[key]
        if isinstance(theirs, Tensor):  # scaled, and scaled back
            form = forms[at[0]]
            return replaced_padding(form._replace(dtype=live.dtype, live=live.dtype), live, samples)
        return _in_part(theirs, live, forms[at[0]], samples)

    def rounding(self, key: str) -> float:
        """The relative error that the dtypes explain in which a value is kept."""
        about = self.header.refs[int(key[1:])]
        kept = [self._forms[i].dtype for i in indices(about["structure"])]
        if torch.int8 in kept:
            return 0.02  # a number of 1 / 127 of the largest is off by a half
        return max((4 * torch.finfo(d).eps for d in kept if d.is_floating_point), default=0.0)

    def _record(self, samples: Samples, r: int) -> list[Tensor]:
        place = self._place(samples.keys[r])
        if place is None:
            raise MissError(
                f"{samples.names[r]} is not in the cache {self.folder}, which holds {len(self)} "
                f"samples{'' if self.header.complete else ' and is not complete'}."
                + (_CHANGED if self.header.reading.key is None else "")
            )
        reader, row = place
        if not np.array_equal(reader.inputs[row], samples.inputs[r]):
            read = ", ".join(map(str, self.header.reading.fields))
            raise MissError(
                f"{samples.names[r]} has other inputs ({read}) than those that the teacher saw for "
                f"the cache {self.folder}." + _CHANGED
            )
        here, there = samples.sizes(r), tuple(reader.sizes[row].tolist())
        if here != there:
            raise MissError(
                f"{samples.names[r]} has {_told(here)} tokens, and the cache {self.folder} has "
                f"{_told(there)} of it."
            )
        return reader.read(row)

    def _place(self, key: Any) -> tuple[ShardReader, int] | None:
        at = int(np.searchsorted(self._keys[:, 0], key[0]))
        while at < len(self._keys) and self._keys[at, 0] == key[0]:
            if self._keys[at, 1] == key[1]:
                whole = int(self._order[at])
                shard = int(np.searchsorted(self._ends, whole, side="right")) - 1
                return self.shards[shard], whole - int(self._ends[shard])
            at += 1
        return None

    def _by_key(self, leaves: Sequence[Tensor]) -> dict[str, Any]:
        return {
            f"v{i}": rebuilt(about["structure"], leaves) for i, about in enumerate(self.header.refs)
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return Kept, (str(self.folder),)  # a worker opens the files itself

    def __repr__(self) -> str:
        return f"<source {self.name!r}: {', '.join(self.codes)} of {len(self)} samples>"


_CHANGED = (
    " Is the text, the image or the tokenization another than when the cache was made (an "
    "augmentation, another length to truncate to)?"
)


def _told(sizes: Sequence[int]) -> str:
    return " and ".join(map(str, sizes))


def replaced_padding(form: Form, value: Tensor, samples: Samples) -> Tensor:
    """A live value with what its form has for padding, rounded as its form is."""
    x = value.detach().cpu()
    rows = [form.cut(x[r], samples.spans, r) for r in range(len(x))]
    return form.place([row.to(form.dtype) for row in rows], samples)


def _in_part(theirs: Any, live: Any, ids: Form, samples: Samples) -> Any:
    """A distribution that is known on some classes, with what live logits say of these. (Itself,
    if what is live are no logits: the hidden states of a head, which is not applied here.)"""
    if not isinstance(live, Tensor) or tuple(live.shape) != theirs.shape:
        return theirs
    z = live.detach().cpu().float() / theirs.temperature
    log_p = z.log_softmax(-1)
    if isinstance(theirs, TopKDistribution):
        entries, form = log_p.gather(-1, theirs.index()), ids
    else:
        entries, form = (
            -(log_p.exp() * log_p).nan_to_num(0.0).sum(-1),
            ids._replace(shape=ids.shape[:-1]),
        )
    form = form._replace(dtype=torch.float32, live=torch.float32)
    entries = replaced_padding(form, entries, samples)
    if isinstance(theirs, TopKDistribution):
        return dataclasses.replace(theirs, log_probs=entries)
    return dataclasses.replace(theirs, entropy=entries)


def refuse_difference(
    what: str, saved: Mapping[str, Any], here: Mapping[str, Any], place: str = "in the cache"
) -> None:
    """Refuse two descriptions that differ, and say in what.

    Raises:
      SourceError: they do.
    """
    lines = [line.replace("in the checkpoint", place)
             for line in differences(dict(saved), dict(here))]  # fmt: skip
    if lines:
        more = f"\n  ... ({len(lines) - 6} more)" if len(lines) > 6 else ""
        raise SourceError(
            f"{what} is of another teacher, or of other values, than the objective has:\n  "
            + "\n  ".join(lines[:6])
            + more
            + ("\nUse a folder of its own for each." if place == "in the cache" else "")
        )


def open(folder: str | os.PathLike[str]) -> Kept:
    """A cache that `cache` has made, as a source.

    Only the header and the index of every shard are read, about 50 bytes for each sample; values
    are read when a batch asks for them, and each is compared with its checksum. Nothing is
    unpickled. A `Kept` can be sent to other processes, which open the files themselves.

    Args:
      folder: of the cache.

    Raises:
      SourceError: there is no cache, or a later version of fkd has written it.
      DamagedSourceError: the header, or the index of a shard, is not what was written.

    Example:
      >>> fkd.sources.open("cache/that/is/not/there")
      Traceback (most recent call last):
      ...
      fkd.sources._errors.SourceError: open: cache/that/is/not/there has no header.json. Make the \
cache first: fkd.sources.cache(objective, loader, folder).
    """
    expect("open", "folder", folder, (str, os.PathLike), "a path")
    return Kept(folder)
