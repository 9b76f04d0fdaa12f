"""The batches of a loader, dealt out among processes, each whole to one of them."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Iterator

from fkd._base.types import Batch, TensorBatch
from fkd.parallel._world import World

from .._base.errors import LoopError
from .._data.batch import normalised, sampled_digest

Round = list[tuple[TensorBatch, int]]
"""Batches with their numbers, one for each process, or fewer at the end."""


def rounds(batches: Iterable[Batch], world: World) -> Iterator[Round]:
    """As many batches at a time as there are processes, which say before each time what they have.

    Raises:
      LoopError: the processes have different batches.
      RankError: another process has failed.
    """
    left = enumerate(batches)
    while True:
        drawn = [(normalised(batch), index) for index, batch in itertools.islice(left, world.size)]
        _expect_alike(drawn, world)
        if drawn:
            yield drawn
        if len(drawn) < world.size:
            return


def _expect_alike(drawn: Round, world: World) -> None:
    digest = 0
    for batch, _ in drawn:
        digest = zlib.crc32(b"%d" % sampled_digest(batch), digest)
    said = world.numbers(len(drawn), digest)
    other = next((rank for rank, numbers in enumerate(said) if numbers != said[0]), None)
    if other is not None:
        raise LoopError(
            f"rank {other} has other batches to evaluate than rank 0. Every process is given the "
            "same whole loader, as a single one would be: no DistributedSampler, and no part of "
            "the data for each rank."
        )
