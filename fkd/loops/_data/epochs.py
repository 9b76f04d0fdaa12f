"""The order of the data: a pure function of (seed, epoch), from any iterable of batches."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
import torch

from fkd._types import Batch

from .._errors import LoopError
from .._random import fold_in, seeded

Loader: TypeAlias = Iterable[Batch] | Callable[[int], Iterable[Batch]]
"""A `DataLoader`, a list, any iterable that can be iterated anew for every epoch; or a function
of a seed (another one for every epoch) that gives the batches of an epoch."""

_CPU = torch.device("cpu")


def epoch_batches(loader: Loader, seed: int, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
    """The batches of an epoch, from number `skip` on.

    The global generators of torch, Python and NumPy are seeded from (seed, epoch, number of the
    batch) before a batch is made; those that a sampler or loader owns, from (seed, epoch) when
    the epoch begins. So shuffling and augmentation are the same in a run that was resumed.
    Batches before `skip` are made and dropped.

    The generator of torch is put back after each batch. Those of Python and NumPy are not, so
    that a model that draws from them draws the same after a resume; `fit` puts them back at its
    end. What has a generator of its own and keeps it from one epoch to the next (NumPy's
    `default_rng` in a dataset, a `DataLoader` with `persistent_workers=True`) is out of reach:
    its numbers depend on all that was drawn before.

    Raises:
      LoopError: the epoch ends before `skip`.
    """
    own = fold_in(seed, epoch)
    if callable(loader) and not isinstance(loader, Iterable):
        loader = loader(own)
    _tell_epoch(loader, own, epoch)
    index = 0
    with _all_seeded(fold_in(own, 0)):
        batches = iter(loader)
    while True:
        with _all_seeded(fold_in(own, index + 1)):
            try:
                made = next(batches)
            except StopIteration:
                break
        if index >= skip:
            yield made
        index += 1
    if index < skip:
        raise LoopError(
            f"the loader gave {index} batches, and the run was at batch {skip} of the epoch when "
            "it was saved. Give it the same data."
        )


@contextlib.contextmanager
def _all_seeded(seed: int) -> Generator[None]:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    with seeded(seed, _CPU):
        yield


def _tell_epoch(loader: Any, seed: int, epoch: int) -> None:
    """Seed the generators that a loader or its samplers own, and tell samplers the epoch."""
    samplers = [loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
    for owner in samplers:
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)
        set_epoch = getattr(owner, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)
