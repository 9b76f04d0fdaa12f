"""What can be wrong with a checkpoint."""

from __future__ import annotations


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, read, or used here; the message says why."""


class DamagedError(CheckpointError):
    """A checkpoint is not, byte for byte, what was saved."""


class MismatchError(CheckpointError):
    """A checkpoint is whole, but belongs to another objective or optimizer."""
