"""A checkpoint of several processes that each hold some rows: each writes and reads its own.

The first process makes the folder under another name. The others find it there, write their rows
into files of their own beside its file, and tell it their checksums. Then it writes the manifest,
which names all files, and gives the folder its name: the checkpoint is whole, or absent. Where the
others do not find the folder (disks of their own), nothing is written, and the caller gathers.

Asynchronously (`begin_in_parts`), each writes its file in a thread, from a copy. Threads tell each
other nothing: what is said between the processes, all say between two steps, when all have written.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fkd.parallel._shards import is_cut
from fkd.parallel._world import World

from .._base.errors import CheckpointError
from .._base.files import Digest, discard, sync_folder, write_file
from . import tensors as _tensors
from .checkpoint import Checkpoint, Others, Saving, copied, load, seal_of
from .lock import ensure_held
from .manifest import STATE, part_name
from .places import Places
from .told import tree_of_first
from .tree import Tree, encode


class _NotShared(Exception):
    """Not all processes find the folder of the first one."""


def save_in_parts(
    world: World, part: int, tree: Tree, save_first: Callable[[Others], Path]
) -> Path | None:
    """Save a tree of which every process holds some rows of the tensors that are cut.

    Args:
      world: the processes; all of them ask.
      part: which rows this one holds, from 0. Several processes may hold the same.
      tree: as for `save`; tensors that are cut are DTensors. Of the rest, the first process
        stores what it has.
      save_first: called in the first process alone: `save` with `others=` as it is given.

    Returns:
      The folder; None if the processes have no folder in common, and nothing was saved.

    Raises:
      CheckpointError: one of them cannot write its part.
      RankError: another process has failed.
    """
    parts = world.exchanged(part)
    writers = [parts.index(k) for k in range(max(parts) + 1)]
    with world.telling():
        if not world.first:
            _write_own(world, writers, tree)
            return _path(world.shared(lambda: ""))

        def others(beside: Path, state: Digest) -> dict[str, list[Any]]:
            return _of_all(world, writers, beside, state)

        try:
            saved = str(save_first(others))
        except _NotShared:
            saved = ""
        return _path(world.shared(lambda: saved))


def _path(text: str) -> Path | None:
    return Path(text) if text else None


def _of_all(
    world: World, writers: Sequence[int], beside: Path, state: Digest
) -> dict[str, list[Any]]:
    """In the first process: size and checksum of the files of all, in the order of the parts."""
    if not _offered(world, beside):
        raise _NotShared
    digests = _agreed(world, [state.size, state.sha256])
    return {part_name(rank): digests[rank] for rank in writers}


def _offered(world: World, beside: Path) -> bool:
    """In the first process: whether all find a folder that it has made."""
    token = beside / f"here-{secrets.token_hex(8)}"
    token.touch()
    world.exchanged({"folder": str(beside.resolve()), "token": token.name})
    visible = world.exchanged(True)
    token.unlink()
    return all(visible)


def _accepted(world: World) -> Path | None:
    """In any other process: the folder of the first one; None if not all find it."""
    said = world.exchanged(None)[0]
    folder = Path(said["folder"])
    return folder if all(world.exchanged((folder / said["token"]).exists())) else None


def _write_own(world: World, writers: Sequence[int], tree: Tree) -> None:
    """In any other process: write the own rows into the folder of the first one."""
    folder = _accepted(world)
    if folder is None:
        return
    if world.rank not in writers:
        _agreed(world, [])
        return
    try:
        digest = _write_part(folder, world.rank, _rows(tree))
    except OSError as error:
        _agreed(world, _unwritten(error))
    else:
        _agreed(world, [digest.size, digest.sha256])


def _rows(tree: Tree) -> dict[str, Tensor]:
    return {name: x for name, x in encode(tree)[1].items() if is_cut(x)}


def _write_part(folder: Path, rank: int, rows: Mapping[str, Tensor]) -> Digest:
    digest = write_file(folder / part_name(rank), _tensors.chunks(rows))
    sync_folder(folder)
    return digest


def _unwritten(error: BaseException) -> str:
    reason = error.strerror if isinstance(error, OSError) else None
    return f"its part cannot be written: {reason or error}"


class UnderWay:
    """A checkpoint of which every process writes its part beside the steps.

    Attributes:
      path: the folder that it will have.
    """

    def __init__(
        self,
        world: World,
        writers: Sequence[int],
        path: Path,
        beside: Path,
        saving: Saving | None,
        rows: Mapping[str, Tensor],
    ) -> None:
        self.path = path
        self._world, self._writers, self._beside = world, writers, beside
        self._saving, self._rows = saving, rows
        self._digest: Digest | None = None

    def write(self) -> None:
        """Write the part of this process, in a thread."""
        if self._saving is not None:
            self._digest = self._saving.write_state(self._beside)
        elif self._world.rank in self._writers:
            self._digest = _write_part(self._beside, self._world.rank, self._rows)

    def finish(self, error: BaseException | None) -> None:
        """Make it whole, when all have written. All processes do it together.

        Raises:
          CheckpointError: one of them could not write its part.
          RankError: another process has failed.
        """
        written = None if self._digest is None else [self._digest.size, self._digest.sha256]
        try:
            told = (written or []) if error is None else _unwritten(error)
            digests = _agreed(self._world, told)
            files = {part_name(rank): digests[rank] for rank in self._writers}
            self._world.from_first(lambda: self._completed(files))
        except BaseException:
            self.abandon()
            raise

    def _completed(self, files: dict[str, list[Any]]) -> None:
        assert self._saving is not None
        ensure_held(self.path.parent)
        self._saving.complete(self._beside, files)

    def abandon(self) -> None:
        """Leave nothing of it."""
        if self._saving is not None:
            discard(self._beside)


def begin_in_parts(
    world: World, part: int, tree: Tree, first: Callable[[], Saving]
) -> UnderWay | None:
    """Begin to save a tree as `save_in_parts` does, from copies.

    Args:
      world, part, tree: see `save_in_parts`.
      first: called in the first process alone: what is saved, with copies.

    Returns:
      What is left to do: `write`, in a thread, and `finish`; None if the processes have no folder
      in common.
    """
    parts = world.exchanged(part)
    writers = [parts.index(k) for k in range(max(parts) + 1)]
    with world.telling():
        if not world.first:
            beside = _accepted(world)
            if beside is None:
                return None
            rows = copied(_rows(tree)) if world.rank in writers else {}
            path = Path(world.shared(lambda: ""))
            return UnderWay(world, writers, path, beside, None, rows)
        saving = first()
        beside = saving.begin()
        if not _offered(world, beside):
            discard(beside)
            return None
        path = Path(world.shared(lambda: str(saving.path)))
        return UnderWay(world, writers, path, beside, saving, {})


def _agreed(world: World, written: list[Any] | str) -> list[list[Any]]:
    """What all processes have written; a text says what is wrong instead, and all raise it."""
    said = world.exchanged(written)
    wrong = [f"rank {rank}: {text}" for rank, text in enumerate(said) if isinstance(text, str)]
    if wrong:
        raise CheckpointError(
            f"save: {'; '.join(wrong)}. Nothing of this checkpoint is left, and the earlier ones "
            "are whole."
        )
    return said


def read_in_parts(
    world: World, places: Places, read: Callable[[Places], Checkpoint | None]
) -> tuple[Tree, Checkpoint | None] | None:
    """Read a checkpoint of which every process needs its rows.

    Where the others find the folder that the first process has read from, each reads its own
    rows; elsewhere the first one reads all, and tells the others.

    Args:
      world: the processes; all of them ask.
      places: of which tensors this process holds rows.
      read: called in the first process, which chooses the checkpoint and checks every byte.

    Returns:
      The tree, and what was read (in the first process); None if there is no checkpoint.
    """
    first = world.from_first(lambda: read(places))
    told = None
    if first is not None:
        told = {"folder": str(first.path.resolve()), "seal": seal_of(first.path)}
    said = world.exchanged(told)[0]
    if said is None:
        return None
    checkpoint = first if world.first else _same(Path(said["folder"]), said["seal"], places)
    if all(world.exchanged(checkpoint is not None)):
        assert checkpoint is not None
        return checkpoint.tree, first
    tree = tree_of_first(world, lambda: load(Path(said["folder"])).tree)
    return tree, first


def _same(folder: Path, seal: str, places: Places) -> Checkpoint | None:
    """The own rows of a checkpoint, if it is here and the one with this seal."""
    try:
        if not (folder / STATE).exists() or seal_of(folder) != seal:
            return None
        return load(folder, places=places, checked=True)
    except (CheckpointError, OSError):
        return None
