"""Which process is behind an exchange that has broken.

A process that is killed closes its connections; one that hangs lets the others wait until the
time-out of the process group. Either way all that live come here, each with an error of a
connection, and find out over the store, where a message needs no other process. What the first of
them concludes all of them say, so also one that hung and has come back.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

PATIENCE = 5.0
"""Seconds in which a process that lives says so, after an exchange has broken."""
PROMPT = 1.0
"""Seconds after which one that waited for the others as they did would have said so."""

_ALIVE, _FAILED, _VERDICT = "fkd/alive", "fkd/failed", "fkd/verdict"


def says_failed(store: Any, rank: int, message: bytes) -> None:
    """Leave the message of a process that has failed by itself."""
    store.set(f"{_FAILED}/{rank}", message)


def culprit(store: Any, rank: int, size: int, error: str) -> str:
    """In words, which process has ended an exchange.

    Args:
      store: of the process group.
      rank: of this process.
      size: how many there are.
      error: what the exchange said here, in a line.
    """
    store.set(f"{_ALIVE}/{rank}", error)
    others = [other for other in range(size) if other != rank]
    silent, late = others, list[int]()
    began = time.monotonic()
    while silent and time.monotonic() < began + PATIENCE:
        for other in others:
            if store.check([f"{_FAILED}/{other}"]):
                said = store.get(f"{_FAILED}/{other}").decode(errors="replace")
                return f"rank {other} failed: {said}"
        silent = [other for other in others if not store.check([f"{_ALIVE}/{other}"])]
        if time.monotonic() < began + PROMPT:
            late = silent
        time.sleep(0.05)
    if store.check([_VERDICT]):
        return _text(store, _VERDICT)
    living = {r: _text(store, f"{_ALIVE}/{r}") for r in range(size) if r not in silent}
    patient = [r for r, said in living.items() if _is_timeout(said)]
    if not silent and not late and patient and rank not in patient:
        late = [rank]
    said = living[patient[0]] if patient else error
    verdict = _verdict(silent, late, bool(patient), said)
    return store.compare_set(_VERDICT, "", verdict).decode(errors="replace")


def _verdict(silent: Sequence[int], late: Sequence[int], timed_out: bool, error: str) -> str:
    if silent and timed_out:
        return (
            f"rank {_names(silent)} hangs: it did not come within the time-out of the process "
            f"group ({error})"
        )
    if silent:
        return f"rank {_names(silent)} does not answer: it was killed, or has ended ({error})"
    if late and timed_out:
        return (
            f"rank {_names(late)} hung: it came after the time-out of the process group, when the "
            f"others had given up ({error})"
        )
    return f"the processes cannot reach each other: {error}"


def _names(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks))


def _is_timeout(error: str) -> bool:
    return "timed out" in error.lower() or "timeout" in error.lower()


def _text(store: Any, key: str) -> str:
    return store.get(key).decode(errors="replace")
