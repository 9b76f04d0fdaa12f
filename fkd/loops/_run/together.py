"""Before every step, the processes of a run tell each other what they have."""

from __future__ import annotations

import enum

from fkd._base.types import TensorBatch

from .._base.errors import LoopError
from .._data.batch import sampled_digest
from .run import Run


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
    said = run.world.numbers(says, sampled_digest(batch))
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
