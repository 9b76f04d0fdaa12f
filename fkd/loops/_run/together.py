"""Before every step, the processes of a run tell each other what they have."""

from __future__ import annotations

import enum
from collections.abc import Set

from fkd._base.types import TensorBatch

from .._base.errors import LoopError
from .._checkpoint.behind import Writes
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
    said = run.world.numbers(says, sampled_digest(batch), run.writer.state)
    _written(run, {state for _, _, state in said})
    kinds = {kind for kind, _, _ in said}
    if kinds & {Says.STOPS, Says.LEAVES}:
        run.told_to_stop = run.stop.signal or "SIGTERM"
    if Says.LEAVES in kinds:
        return False
    ended = [rank for rank, (kind, _, _) in enumerate(said) if kind == Says.EPOCH_ENDS]
    if ended and len(ended) < run.world.size:
        raise LoopError(
            f"{run.where}: the loader of rank {ended[0]} gave no more batches, and others did. "
            f"{_EXPECTED}"
        )
    digests = [digest for _, digest, _ in said]
    other = next((rank for rank, x in enumerate(digests) if x != digests[0]), None)
    if other is not None:
        raise LoopError(f"{run.where}: rank {other} has another batch than rank 0. {_EXPECTED}")
    return True


def _written(run: Run, states: Set[int]) -> None:
    """Finish what is written beside the steps, when all processes have, or one has failed: then
    all of them end with its error, at the step after it."""
    if Writes.HAS_FAILED in states or (Writes.IS_DONE in states and Writes.NOW not in states):
        wait_for_writers(run)


def wait_for_writers(run: Run) -> None:
    """Wait until no process writes. All ask.

    Raises:
      CheckpointError: it could not be written.
      RankError: another process could not write it.
    """
    with run.world.telling():
        run.writer.wait()
        run.world.numbers()


_EXPECTED = (
    "Every process is given the same whole batches, as a single one would be, and takes its own "
    "examples of them: no DistributedSampler, and no part of the data for each rank. Shuffle "
    "with the global generators of torch, which fit seeds alike."
)
