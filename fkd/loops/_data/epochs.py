"""The order of the data: a pure function of (seed, epoch), from any iterable of batches."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import torch
from torch.utils.data import DataLoader

from fkd._base.types import Batch

from .._base.errors import LoopError
from .._base.random import fold_in, seeded
from .ahead import Startable, applied
from .position import (
    CPU,
    NumberedLoader,
    Stateful,
    by_index,
    draws_by_itself,
    indexed,
    shorter,
    stateful,
)

Loader: TypeAlias = Iterable[Batch] | Callable[[int], Iterable[Batch]]
"""A `DataLoader`, a list, any iterable that can be iterated again for every epoch; or a function
of a seed (another one for every epoch) that gives the batches of an epoch."""

Told: TypeAlias = Callable[[int, int], None]
"""`told(batches, of)`: how many batches before the place are drawn again so far."""


class Mapped:
    """A loader with a function applied to each of its batches: the same order, and the same
    place in an epoch, as of the loader itself. A function that can be started (`Startable`) is
    some batches ahead."""

    def __init__(self, fn: Callable[[Batch], Batch], loader: Iterable[Batch]) -> None:
        self.fn, self.loader = fn, loader

    def __iter__(self) -> Iterator[Batch]:
        return (batch for batch, _ in applied(self.fn, ((b, None) for b in self.loader)))


class Epochs:
    """The batches of a run, of any epoch and from any place in it.

    The global generators of torch, Python and NumPy are seeded from (seed, epoch, number of the
    batch) while a batch is made, also in the workers of a `DataLoader` over a dataset with
    indices, and are afterwards as they were; those that a sampler or loader owns are seeded from
    (seed, epoch) when the epoch begins. So shuffling and augmentation are the same in a run that
    was resumed. What has a generator of its own and keeps it from one epoch to the next (NumPy's
    `default_rng` in a dataset, an iterable dataset in `persistent_workers`) is out of reach: its
    numbers depend on all that was drawn before.

    Args:
      loader: see `Loader`.
      seed: of the run.
      told: is told how many batches are drawn again, where that is needed.
    """

    def __init__(self, loader: Loader, seed: int, *, told: Told | None = None) -> None:
        self.loader, self._seed, self._told = loader, seed, told
        self._numbered: tuple[object, NumberedLoader] | None = None
        self._stateful: Stateful | None = None
        self._ahead = False  # whether batches are drawn before they are given out
        self._given_out: dict[str, Any] | None = None  # the place of the last of them, then

    def batches(
        self, epoch: int, *, skip: int = 0, place: dict[str, Any] | None = None
    ) -> Iterator[Batch]:
        """The batches of an epoch, from number `skip` on.

        Args:
          epoch: its number.
          skip: how many batches are used already.
          place: what `place` said then.

        Raises:
          LoopError: the epoch ends before `skip`.
        """
        seed = fold_in(self._seed, epoch)
        with seeded(fold_in(seed, 0), CPU):
            loader: Any = self.loader
            if callable(loader) and not isinstance(loader, Iterable):
                loader = loader(seed)
            loader, functions = _unwrapped(loader)
            _tell_epoch(loader, seed, epoch)
            drawn, begin = self._from(loader, seed, skip, place)
        self._ahead = any(isinstance(fn, Startable) for fn in functions)
        self._given_out = None
        batches = self._drawn(drawn, seed, begin, skip)
        for fn in functions:
            batches = applied(fn, batches)
        try:
            for batch, self._given_out in batches:
                yield batch
        finally:
            self._stateful = None
            self._ahead = False

    def _drawn(
        self, batches: Iterator[Batch], seed: int, begin: int, skip: int
    ) -> Iterator[tuple[Batch, dict[str, Any] | None]]:
        """The batches of the loader itself from number `skip` on, each with the place behind it
        where others are drawn before it is given out."""
        index = begin
        for index in itertools.count(begin):
            with seeded(fold_in(seed, index + 1), CPU):
                try:
                    batch = next(batches)
                except StopIteration:
                    break
            if index >= skip:
                yield batch, copy.deepcopy(self._now()) if self._ahead else None
            elif self._told is not None:
                self._told(index + 1, skip)
        if index < skip:
            raise LoopError(shorter(index, skip))

    def place(self) -> dict[str, Any] | None:
        """Where the loader is, between two batches; None if it cannot say."""
        return self._given_out if self._ahead else self._now()

    def _now(self) -> dict[str, Any] | None:
        return None if self._stateful is None else self._stateful.state_dict()

    def _from(
        self, loader: Any, seed: int, skip: int, place: dict[str, Any] | None
    ) -> tuple[Iterator[Batch], int]:
        """The batches from a number on, and that number."""
        self._stateful = stateful(loader)
        if self._stateful is not None:
            if skip == 0 or place is None:
                return iter(loader), 0
            self._stateful.load_state_dict(place)
            return iter(loader), skip
        if not by_index(loader):
            return iter(loader), 0
        begin = 0 if draws_by_itself(loader) else skip
        if not isinstance(loader, DataLoader):
            return indexed(loader, begin), begin
        if self._numbered is None or self._numbered[0] is not loader:
            self._numbered = loader, NumberedLoader(loader)
        return self._numbered[1].from_batch(seed, begin), begin


def epoch_batches(loader: Loader, seed: int, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
    """The batches of one epoch, from number `skip` on; see `Epochs`."""
    return Epochs(loader, seed).batches(epoch, skip=skip)


def _unwrapped(loader: Any) -> tuple[Any, list[Callable[[Batch], Batch]]]:
    """The loader inside of `Mapped` ones, and their functions, innermost first."""
    functions: list[Callable[[Batch], Batch]] = []
    while isinstance(loader, Mapped):
        functions.insert(0, loader.fn)
        loader = loader.loader
    return loader, functions


def _tell_epoch(loader: Any, seed: int, epoch: int) -> None:
    """Seed the generators that a loader, its samplers or its dataset own, and tell them the
    epoch."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    owners = [
        *(loader, getattr(loader, "sampler", None), batch_sampler),
        *(getattr(batch_sampler, "sampler", None), getattr(loader, "dataset", None)),
    ]
    for owner in {id(x): x for x in owners if x is not None}.values():
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)
        set_epoch = getattr(owner, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)
