"""Randomness as a function of a seed: no generator is part of a state."""

from __future__ import annotations

import contextlib
import logging
import random
import threading
from collections.abc import Generator
from typing import Any

import numpy as np
import torch

from fkd._base.generators import torch_seeded

_LOG = logging.getLogger(__name__)
_MASK = (1 << 64) - 1
_WORD = (1 << 32) - 1
_TURN = threading.RLock()
"""Held while the process's generators are seeded: torch, NumPy and Python have one each."""
_PATIENCE = 60.0
"""Seconds after which a thread that waits for its turn says so."""


def fold_in(seed: int, data: int) -> int:
    """A new seed from a seed and a number (a step, an epoch, a rank): 64 bits, well mixed.

    All randomness of a run follows from `fold_in(seed, step)`, so that resuming at a step
    needs no saved generator. The mixing function is SplitMix64 (Steele et al., 2014).

    Example:
      >>> fold_in(0, 1) == fold_in(0, 1), fold_in(0, 1) == fold_in(0, 2)
      (True, False)
    """
    return _mix((_mix(seed & _MASK) ^ (data & _MASK)) & _MASK)


def _mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device, *, host: bool = True) -> Generator[None]:
    """Random numbers from `seed` inside, and the generators as they were afterwards.

    The generators belong to the whole process, so threads take turns: whoever enters while
    another thread is inside waits until that one has left. Two runs in two threads have the
    bits that each has alone.

    Args:
      seed: 64 bits.
      device: whose generator of torch is seeded, beside the CPU's.
      host: the generators of Python and NumPy as well, from which a model may draw in its own
        code (SpecAugment, stochastic depth). Saving and restoring them costs about 0.1 ms;
        code that was compiled cannot draw from them.
    """
    _wait_for_turn()
    try:
        with torch_seeded(seed, device):
            if host:
                with _host_seeded(seed):
                    yield
            else:
                yield
    finally:
        _TURN.release()


@contextlib.contextmanager
def in_turn() -> Generator[None]:
    """Other threads that draw random numbers wait meanwhile: for what saves the generators of the
    process and sets them back, as torch's compiler does."""
    _wait_for_turn()
    try:
        yield
    finally:
        _TURN.release()


@contextlib.contextmanager
def _host_seeded(seed: int) -> Generator[None]:
    python, numpy = random.getstate(), np.random.get_state(legacy=False)
    random.seed(seed)
    np.random.seed([seed & _WORD, (seed >> 32) & _WORD])
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _wait_for_turn() -> None:
    """Become the only thread that draws random numbers, until `_TURN` is released."""
    if not _TURN.acquire(timeout=_PATIENCE):
        _LOG.warning(
            "%s has waited %g s for another thread, which uses the random generators of the "
            "process, or compiles. Steps and loaders take turns: a loader must not wait for a step "
            "or a score that runs in another thread.",
            *(threading.current_thread().name, _PATIENCE),
        )
        _TURN.acquire()


def drawn_so_far() -> tuple[Any, ...]:
    """The state of the process's generators of random numbers."""
    numpy: Any = np.random.get_state(legacy=False)
    state = numpy["state"]
    of_torch = torch.default_generator.get_state().numpy().tobytes()
    return of_torch, state["key"].tobytes(), state["pos"]
