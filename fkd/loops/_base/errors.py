"""What can go wrong in a run."""

from __future__ import annotations


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, read, or used here; the message says why."""


class DamagedError(CheckpointError):
    """A checkpoint is not, byte for byte, what was saved."""


class UnreadableError(CheckpointError):
    """A checkpoint cannot be read now (a disk or a limit of the system); it may well be whole."""


class MismatchError(CheckpointError):
    """A checkpoint is whole, but belongs to another objective or optimizer."""


class LoopError(RuntimeError):
    """A run that had to stop; says at which batch and why. What was done is saved."""


class CompileError(RuntimeError):
    """torch cannot compile a function; says in which module, and what to do."""


class NonFiniteError(LoopError):
    """Too many updates in a row were left out, since loss or gradient were not finite."""
