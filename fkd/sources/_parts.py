"""Several processes that build one cache: each has shards of its own, and the last one joins them.

They say nothing to each other; all that they know of each other is in the folder. Process r writes
shards into `part-r`, and names those that are whole in `part-r/part.json`, a header like that of
the cache. Whoever finds that all samples of the loader are there writes `header.json`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import NamedTuple

import torch.distributed as dist

from fkd.loops._base.errors import CheckpointError
from fkd.loops._base.files import digest, discard, make_folder
from fkd.loops._checkpoint.lock import lock
from fkd.parallel._world import has_turn

from ._errors import DamagedSourceError, SourceError
from ._header import NAME, PART, Header, part_files, read_header, write_header
from ._store import Shard, ShardReader, form_of

_MOMENT = 5.0
"""Seconds in which a folder becomes free that somebody only looks at."""
_PATIENCE = 60.0
"""Seconds that the other processes have to begin, and to join what is there."""


class Share(NamedTuple):
    """Which part of the work a process has.

    Attributes:
      rank: of this process.
      world: how many there are.
      together: whether a launcher has started them, so that all of them come, and each waits for
        the others.
    """

    rank: int
    world: int
    together: bool

    @property
    def place(self) -> str:
        """Of the shards in the folder: the beginning of their names."""
        return f"part-{self.rank}/" if self.world > 1 else ""

    def owns(self, index: int) -> bool:
        """Whether a batch is this process's, by its number."""
        return index % self.world == self.rank


def share_of(rank: int | None, world: int | None) -> Share:
    """The share of this process: as given, or that of `torch.distributed`, or of `torchrun`; all,
    where the others wait for their turn.

    Raises:
      SourceError: only one of the two is given, or they do not fit.
    """
    if rank is None and world is None:
        if has_turn():
            return Share(0, 1, False)
        if dist.is_available() and dist.is_initialized():
            return Share(dist.get_rank(), dist.get_world_size(), True)
        if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
            return Share(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), True)
        return Share(0, 1, False)
    if rank is None or world is None or not 0 <= rank < world:
        raise SourceError(
            f"cache: rank={rank}, world={world}; both are expected, with 0 <= rank < world, or "
            "neither: then torch.distributed or torchrun says them."
        )
    return Share(rank, world, False)


@contextlib.contextmanager
def occupied(folder: Path, share: Share) -> Generator[None]:
    """Hold the folder, or a process's part of it.

    Raises:
      CheckpointError: another process holds it.
    """
    with contextlib.ExitStack() as stack:
        if share.world > 1:
            part = folder / share.place
            make_folder(part)
            stack.enter_context(_patient_lock(part, _MOMENT))
        else:
            for part in (folder, *(file.parent for file in part_files(folder))):
                stack.enter_context(_patient_lock(part, _MOMENT))
        yield


@contextlib.contextmanager
def _patient_lock(folder: Path, seconds: float) -> Generator[None]:
    with contextlib.ExitStack() as stack:
        end = time.monotonic() + seconds
        while True:
            try:
                stack.enter_context(lock(folder))
                break
            except CheckpointError:
                if time.monotonic() > end:
                    raise
            time.sleep(0.05)
        yield


def is_whole(folder: Path, shard: Shard) -> bool:
    """Whether a shard is, byte for byte, what was written."""
    path = folder / shard.file
    return path.is_file() and digest(path) == (shard.size, shard.sha256)


def keys_of(folder: Path, header: Header) -> set[bytes]:
    """The keys of the samples of some shards."""
    return set(inputs_of(folder, header))


def inputs_of(folder: Path, header: Header) -> dict[bytes, bytes]:
    """The keys of the samples of some shards, with digests of what the teacher reads of them."""
    forms = [form_of(about) for about in header.forms]
    readers = (ShardReader(folder, shard, forms) for shard in header.shards)
    return {
        key.tobytes(): read.tobytes()
        for reader in readers
        for key, read in zip(reader.keys, reader.inputs, strict=True)
    }


class Meeting:
    """What all processes have written, as one of them sees it.

    Args:
      folder: of the cache.
      share: of this process.
      damaged: shards that were not whole when it began, and may have been made again since.
    """

    def __init__(self, folder: Path, share: Share, damaged: Iterable[Shard]) -> None:
        self.folder, self.share = folder, share
        self._damaged = set(damaged)
        self._keys: dict[Shard, set[bytes]] = {}

    def join(self, samples: set[bytes]) -> None:
        """Write the header of the whole, once every sample is there.

        Waits for the others if a launcher has started them. Else it leaves that to the last one.

        Args:
          samples: the keys of all samples of the loader.

        Raises:
          SourceError: samples are missing, and nobody is at work on them.
        """
        pause, alone = 0.02, time.monotonic()
        while not self._joined(samples):
            if not self.share.together:
                return
            if time.monotonic() - alone > _PATIENCE:
                if not self._accompanied():
                    raise self._left_alone(samples)
                alone = time.monotonic()
            time.sleep(pause)
            pause = min(1.5 * pause, 1.0)

    def _joined(self, samples: set[bytes]) -> bool:
        """Whether the header has all samples; writes it, if the shards have them."""
        header = read_header(self.folder)
        if header is None or not samples <= self._there(header):
            return False
        if header.complete and not part_files(self.folder):
            return True
        alone = self.share.world == 1  # which holds the folder as it is
        with contextlib.nullcontext() if alone else _patient_lock(self.folder, _PATIENCE):
            now = read_header(self.folder)
            assert now is not None
            whole = [shard for shard in now.shards if self._is_good(shard)]
            joined(self.folder, now._replace(shards=whole, complete=True))
        return True

    def _there(self, header: Header) -> set[bytes]:
        for shard in header.shards:
            if shard in self._keys or not self._is_good(shard):
                continue
            with contextlib.suppress(DamagedSourceError):  # it is being made again
                self._keys[shard] = keys_of(self.folder, header._replace(shards=[shard]))
        return set[bytes]().union(*(self._keys.get(s, ()) for s in header.shards))

    def _is_good(self, shard: Shard) -> bool:
        if shard in self._damaged and is_whole(self.folder, shard):
            self._damaged.discard(shard)
        return shard not in self._damaged

    def _accompanied(self) -> bool:
        """Whether another process is at work."""
        for rank in set(range(self.share.world)) - {self.share.rank}:
            part = self.folder / f"part-{rank}"
            if part.is_dir():
                try:
                    with lock(part):
                        pass
                except CheckpointError:
                    return True
        return False

    def _left_alone(self, samples: set[bytes]) -> SourceError:
        header = read_header(self.folder)
        missing = len(samples - (set[bytes]() if header is None else self._there(header)))
        others = sorted(set(range(self.share.world)) - {self.share.rank})
        return SourceError(
            f"cache: {missing} of {len(samples)} samples are missing in {self.folder}, and no "
            f"other process is at work on them: none of {others} of {self.share.world}. Call cache "
            "in every process, with the same loader; or in one alone: cache(..., rank=0, world=1). "
            "What is there stays."
        )


def joined(folder: Path, header: Header) -> None:
    """Write the header of the whole; what the parts say is in it then."""
    write_header(folder / NAME, header)
    for file in part_files(folder):
        discard(file)


def part_header(folder: Path, share: Share) -> Path:
    """The file in which a process names its shards."""
    return folder / share.place / (PART if share.world > 1 else NAME)
