"""Checkpoints: safetensors and JSON, whole or absent, checked byte for byte when read.

    <directory>/step-00000100/state.safetensors     the tensors
                              manifest.json         everything else, and the checksums

Of several processes that hold rows of the tensors, each writes a file beside (see `parts`).

A checkpoint is written under another name, synced to the disk, and renamed: at any moment
each folder `step-...` is whole. Nothing is pickled or unpickled. Saving costs one pass over
the values (copied to the host one tensor at a time, hashed with SHA-256, written, synced);
loading reads the file twice, the second time from the page cache.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from fkd._base.arguments import called_with
from fkd.parallel._shards import local

from .._base.errors import CheckpointError, DamagedError, MismatchError, UnreadableError
from .._base.files import (
    Digest,
    digest,
    discard,
    make_folder,
    patiently,
    remove_folder,
    sync_folder,
    write_file,
)
from . import tensors as _tensors
from .folder import free_name, kept, newest_first, step_of, survey
from .manifest import NAME, STATE, Manifest, differences, inspect, plain, reading, render
from .places import Places
from .tree import Tree, decode, encode

_WRITING, _DELETING = ".writing-", ".deleting-"
_log = logging.getLogger("fkd")

Others: TypeAlias = Callable[[Path, Digest], dict[str, list[Any]]]
"""`(folder under way, digest of the file of this process) -> digests of the files of all`."""


class Checkpoint(NamedTuple):
    """What was read.

    Attributes:
      path: the folder it was read from.
      step: updates done when it was saved.
      metric: as given to `save`.
      fingerprint: as given to `save`, as JSON.
      tree: as given to `save`; tensors are on the CPU, without gradients.
      skipped: newer checkpoints that were damaged, one message each.
      finite: whether the saved state held finite numbers only; None where nobody looked.
    """

    path: Path
    step: int
    metric: int | float | None
    fingerprint: Any
    tree: Tree
    skipped: tuple[str, ...] = ()
    finite: bool | None = None


@dataclass(frozen=True)
class ToSave:
    """What is to be saved, and where: the arguments of `save`."""

    directory: str | os.PathLike[str]
    tree: Tree
    _: KW_ONLY
    step: int
    fingerprint: Any = None
    metric: int | float | None = None
    keep_last: int = 3
    keep_best: int = 1
    higher_is_better: bool = True
    finite: bool | None = None
    others: Others | None = None

    def __post_init__(self) -> None:
        if self.keep_last < 1 or self.keep_best < 0 or self.step < 0:
            raise ValueError(
                f"save: step {self.step}, keep_last {self.keep_last}, keep_best {self.keep_best}; "
                "step >= 0, keep_last >= 1 and keep_best >= 0 are expected."
            )


@called_with(ToSave)
def save(wanted: ToSave) -> Path:
    """Save a state, then delete the checkpoints that need not be kept.

    Args:
      directory: of all checkpoints of a run; made if it is missing.
      tree: dicts, lists and tuples of tensors, ints, floats, bools, strings and None. Tied
        tensors stay tied; other views of one memory come back as tensors of their own.
      step: updates done. A second checkpoint of a step replaces the first, and takes
        over its metric if it has none.
      fingerprint: a nested description (dicts, lists, strings, numbers) of what the state
        belongs to; `load` compares it.
      metric: what "best" goes by. None, nan and inf are never best.
      keep_last: how many of the newest checkpoints are kept, at least 1.
      keep_best: how many of the best are kept besides.
      higher_is_better: whether the best metric is the highest or the lowest.
      finite: whether the state is finite, which the checkpoint remembers: the newest finite
        one is never deleted. None: if each number of the tree is.
      others: lets other processes write their rows of what is cut; see `parts`.

    Returns:
      The folder of the checkpoint, which is on the disk by now.

    Raises:
      CheckpointError: it could not be written (full disk, read-only folder). The earlier
        checkpoints are whole, and nothing partial is left.
      TypeError: the tree or the fingerprint holds what cannot be stored; names its path.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = save(folder, {"w": torch.ones(2), "epoch": 1}, step=100)
      ...     path.name, load(path).tree
      ('step-00000100', {'w': tensor([1., 1.]), 'epoch': 1})
    """
    return to_save(wanted).write()


class Saving(NamedTuple):
    """A checkpoint that is ready to be written.

    Attributes:
      path: its folder.
      manifest: without the checksums of its files.
      tensors: by name.
      superseded: checkpoints of the same step.
      there: all that are whole.
      kept: which of its own folder and theirs are kept.
      others: see `save`.
    """

    path: Path
    manifest: Manifest
    tensors: dict[str, Tensor]
    superseded: list[Path]
    there: dict[Path, Manifest]
    kept: set[Path]
    others: Others | None

    def write(self) -> Path:
        """Write it, and delete the checkpoints that need not be kept; see `save`."""
        beside = self.begin()
        try:
            state = self.write_state(beside)
            files = {STATE: list(state)} if self.others is None else self.others(beside, state)
            return self.complete(beside, files)
        except BaseException:
            discard(beside)
            raise

    def begin(self) -> Path:
        """Make the folder under another name, and remove what killed writers left."""
        beside = self.path.with_name(_WRITING + self.path.name)
        with self._explained():
            make_folder(self.path.parent)
            _sweep(self.path.parent)
            beside.mkdir()
        return beside

    def write_state(self, beside: Path) -> Digest:
        """Write the file of this process."""
        with self._explained():
            return write_file(beside / STATE, _tensors.chunks(self.tensors))

    def complete(self, beside: Path, files: dict[str, list[Any]]) -> Path:
        """Name all files, give the folder its name, and delete what need not be kept.

        Args:
          beside: the folder under its other name.
          files: size and checksum of each, which are on the disk.
        """
        with self._explained():
            write_file(beside / NAME, [render(self.manifest._replace(files=files))])
            sync_folder(beside)
            beside.rename(self.path)
            sync_folder(self.path.parent)
        older = [p for p in self.there if p not in self.superseded and p not in self.kept]
        _remove([*self.superseded, *older])
        return self.path

    @contextlib.contextmanager
    def _explained(self) -> Generator[None]:
        """An error of the disk says which checkpoint is still whole."""
        try:
            yield
        except OSError as error:
            raise CheckpointError(_unwritable(self.path, error, self.there)) from error


def to_save(wanted: ToSave, *, copies: bool = False) -> Saving:
    """What `save` writes, ready to be written.

    Args:
      wanted: see `save`.
      copies: of all tensors, on the host: the tree may change before they are written. Of those
        that are cut, the own rows.
    """
    folder = Path(wanted.directory)
    data, tensors = encode(wanted.tree)
    about = {name: _tensors.describe(x) for name, x in tensors.items()}
    if copies:
        tensors = copied(tensors)
    there = survey(folder)
    good = there.good
    superseded = [p for p in (*good, *there.damaged) if step_of(p) == wanted.step]
    metric = wanted.metric
    if metric is None or not math.isfinite(metric):
        metric = next((good[p].metric for p in superseded if p in good), None)
    serial = 1 + max((m.serial for m in good.values()), default=0) + len(there.unreadable)
    finite = all_finite(tensors) if wanted.finite is None else wanted.finite
    described = plain(wanted.fingerprint), data, about
    manifest = Manifest(
        wanted.step, serial, metric, time.time(), *described, files={}, finite=finite
    )
    path = folder / free_name(folder, wanted.step)
    left = {p: m for p, m in good.items() if p not in superseded}
    rule = wanted.keep_last, wanted.keep_best, wanted.higher_is_better
    keep = kept({**left, path: manifest}, *rule)
    return Saving(path, manifest, tensors, superseded, good, set(keep), wanted.others)


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the host; of what is cut, of the own rows."""
    rows = {name: local(x) for name, x in tensors.items()}
    return {n: x.clone() if x.device.type == "cpu" else x.cpu() for n, x in rows.items()}


def all_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether all tensors are free of nan and inf."""
    return all(
        bool(x.isfinite().all())
        for x in map(local, tensors.values())
        if (x.is_floating_point() and x.itemsize > 1) or x.is_complex()
    )


def load(
    path: str | os.PathLike[str],
    *,
    fingerprint: Any = None,
    places: Places | None = None,
    checked: bool = False,
) -> Checkpoint:
    """Read one checkpoint, and check every byte of it.

    Args:
      path: the folder that `save` returned.
      fingerprint: of the objective and optimizer here; None compares nothing.
      places: of which tensors this process holds rows, which alone are read; None: all whole.
      checked: another process has checked every byte.

    Raises:
      DamagedError: it is not what was saved; the message says what is wrong.
      UnreadableError: it cannot be read now.
      MismatchError: it was saved with another fingerprint; the message lists each difference.
    """
    path = Path(path)
    try:
        manifest = inspect(path)
        _compare(path, manifest, fingerprint)
        with reading():
            for name, (size, sha256) in ({} if checked else manifest.files).items():
                if patiently(lambda name=name: digest(path / name)) != Digest(size, sha256):
                    raise DamagedError(f"{name} is damaged (the checksum does not match)")
            stored = patiently(lambda: _stored(path, manifest, places))
        tree = decode(manifest.tree, stored)
    except MismatchError:
        raise
    except CheckpointError as error:
        raise type(error)(f"{path}: {error}") from error
    except ValueError as error:
        raise DamagedError(f"{path}: it cannot be read: {error}") from error
    described = manifest.metric, manifest.fingerprint, tree
    return Checkpoint(path, manifest.step, *described, finite=manifest.finite)


def _stored(path: Path, manifest: Manifest, places: Places | None) -> dict[str, Tensor]:
    """The tensors of a checkpoint; of those that are cut, the rows of this process."""
    about, files = manifest.tensors, [path / name for name in manifest.files]
    if places is None:
        return _tensors.read(files, about, first=path / STATE)
    read = _tensors.read(files, about, first=path / STATE, wanted=places.rows)
    return {name: places.cut(name, about[name], x) for name, x in read.items()}


def seal_of(path: Path) -> str:
    """What tells a checkpoint from any other: the digest of its manifest."""
    return digest(path / NAME).sha256


def load_latest(
    directory: str | os.PathLike[str],
    *,
    fingerprint: Any = None,
    places: Places | None = None,
    accept: Callable[[Checkpoint], Any] | None = None,
) -> Checkpoint | None:
    """Read the newest checkpoint that is whole.

    Newest is the one saved last, whatever its step. Each damaged one is named in a warning of
    the logger "fkd" and in `Checkpoint.skipped`.

    Args:
      directory: of all checkpoints of a run.
      fingerprint, places: as `load`.
      accept: called with what was read; raises `DamagedError` if it is not what belongs there,
        and the checkpoint before it is tried.

    Returns:
      The checkpoint; None if the folder has none, or does not exist.

    Raises:
      MismatchError: as `load`; an older checkpoint is not tried instead.
      DamagedError: there are checkpoints, and none of them is whole.
      UnreadableError: one cannot be read now (a failing disk, too many open files), which may
        be the newest; no older one is taken instead.
    """
    there = survey(Path(directory))
    for path, reason in there.unreadable.items():
        raise UnreadableError(f"{path}: {reason}")
    skipped = [f"{path}: {reason}" for path, reason in there.damaged.items()]
    for message in skipped:
        _log.warning("checkpoint skipped: %s", message)
    for path in newest_first(there.good):
        try:
            read = load(path, fingerprint=fingerprint, places=places)
            if accept is not None:
                accept(read)
        except DamagedError as error:
            message = str(error) if str(path) in str(error) else f"{path}: {error}"
            _log.warning("checkpoint skipped: %s", message)
            skipped.append(message)
        else:
            return read._replace(skipped=tuple(skipped))
    if skipped:
        raise DamagedError(
            f"load_latest: no checkpoint in {directory} is whole.\n  " + "\n  ".join(skipped)
        )
    return None


def _sweep(folder: Path) -> None:
    """Remove what killed writers left."""
    for prefix in (_WRITING, _DELETING):
        for path in folder.glob(prefix + "*"):
            discard(path)


def _remove(paths: list[Path]) -> None:
    for path in paths:
        try:
            remove_folder(path, beside=path.with_name(_DELETING + path.name))
        except OSError as error:
            _log.warning("checkpoint not deleted: %s: %s", path, error.strerror)


def _compare(path: Path, manifest: Manifest, fingerprint: Any) -> None:
    if fingerprint is None:
        return
    lines = list(differences(manifest.fingerprint, plain(fingerprint)))
    if lines:
        more = [f"... and {len(lines) - 20} more"] if len(lines) > 20 else []
        raise MismatchError(
            f"load: {path} was saved by a run with another objective or optimizer:\n  "
            + "\n  ".join([*lines[:20], *more])
            + "\nUse another folder for this run, or the settings of that one. To go on from its "
            "parameters with other settings (a longer schedule): state = restore(step, folder) "
            "with a step of the old settings, then fit(new_step, state, ...) in another folder."
        )


def _unwritable(path: Path, error: OSError, good: dict[Path, Manifest]) -> str:
    newest = next(iter(newest_first(good)), None)
    left = f"The newest whole one is {newest.name}" if newest else "There is no earlier one"
    return f"save: {path} cannot be written: {error.strerror or error}. {left}."
