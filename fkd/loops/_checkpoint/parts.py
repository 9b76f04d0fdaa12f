"""A checkpoint of several processes that each hold some rows: each writes and reads its own.

The first process makes the folder under another name. The others find it there, write their rows
into files of their own beside its file, and tell it their checksums. Then it writes the manifest,
which names all files, and gives the folder its name: the checkpoint is whole, or absent. Where the
others do not find the folder (disks of their own), nothing is written, and the caller gathers.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fkd.parallel._shards import is_cut
from fkd.parallel._world import World

from .._base.errors import CheckpointError
from .._base.files import Digest, sync_folder, write_file
from . import tensors as _tensors
from .checkpoint import Checkpoint, Others, load, seal_of
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
    token = beside / f"here-{secrets.token_hex(8)}"
    token.touch()
    world.exchanged({"folder": str(beside.resolve()), "token": token.name})
    visible = world.exchanged(True)
    token.unlink()
    if not all(visible):
        raise _NotShared
    digests = _agreed(world, [state.size, state.sha256])
    return {part_name(rank): digests[rank] for rank in writers}


def _write_own(world: World, writers: Sequence[int], tree: Tree) -> None:
    """In any other process: write the own rows into the folder of the first one."""
    said = world.exchanged(None)[0]
    folder = Path(said["folder"])
    if not all(world.exchanged((folder / said["token"]).exists())):
        return
    if world.rank not in writers:
        _agreed(world, [])
        return
    rows = {name: x for name, x in encode(tree)[1].items() if is_cut(x)}
    try:
        digest = write_file(folder / part_name(world.rank), _tensors.chunks(rows))
        sync_folder(folder)
    except OSError as error:
        _agreed(world, f"its part cannot be written: {error.strerror or error}")
    else:
        _agreed(world, [digest.size, digest.sha256])


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
