"""Before every step, the processes of a run tell each other what they have."""

from __future__ import annotations

import enum
import zlib

from fkd._base.types import TensorBatch

from .._base.errors import LoopError
from .._data.batch import leaves
from .run import Run

_SAMPLE = 64
"""Numbers of every tensor that are compared."""


class Says(enum.IntEnum):
    """What a process says of itself."""

    HAS_A_BATCH = 0
    STOPS = 1  # after a signal, when the step is done
    LEAVES = 2  # without another step
    EPOCH_ENDS = 3


def together(run: Run, says: Says, batch: TensorBatch = None) -> bool:
    """Whether the processes go on to the next step, or have all come to the end of an epoch.

    All of them do the same: where a signal has reached one, all end after the same step.

    Raises:
      LoopError: they have different batches, or only some of them have one.
      RankError: another process has failed.
    """
    if run.world.size == 1:
        return True
    if says is Says.HAS_A_BATCH and run.stop.signal is not None:
        says = Says.STOPS
    said = run.world.numbers(says, _digest(batch))
    kinds = {kind for kind, _ in said}
    if kinds & {Says.STOPS, Says.LEAVES}:
        run.told_to_stop = run.stop.signal or "SIGTERM"
    if Says.LEAVES in kinds:
        return False
    ended = [rank for rank, (kind, _) in enumerate(said) if kind == Says.EPOCH_ENDS]
    if ended and len(ended) < run.world.size:
        raise LoopError(
            f"{run.where}: the loader of rank {ended[0]} gave no more batches, and others did. "
            f"{_EXPECTED}"
        )
    digests = [digest for _, digest in said]
    other = next((rank for rank, x in enumerate(digests) if x != digests[0]), None)
    if other is not None:
        raise LoopError(f"{run.where}: rank {other} has another batch than rank 0. {_EXPECTED}")
    return True


_EXPECTED = (
    "Every process is given the same whole batches, as a single one would be, and takes its own "
    "examples of them: no DistributedSampler, and no part of the data for each rank. Shuffle "
    "with the global generators of torch, which fit seeds alike."
)


def _digest(batch: TensorBatch) -> int:
    """Of shapes and some values: enough to tell shuffled data apart."""
    digest = 0
    for place, x in leaves(batch):
        digest = zlib.crc32(f"{place} {x.dtype} {tuple(x.shape)}".encode(), digest)
        if x.device.type == "cpu" and x.numel():
            flat = x.detach().reshape(-1)
            some = flat[:: max(1, flat.numel() // _SAMPLE)]
            digest = zlib.crc32(repr(some.tolist()).encode(), digest)
    return digest
