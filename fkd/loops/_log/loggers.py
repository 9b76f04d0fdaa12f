"""Where else a run's values go: any function of a step and of numbers by name."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

Logger: TypeAlias = Callable[[int, Mapping[str, float]], object]
"""`logger(step, {name: value})`: `loss/<term>` and more at log points, `eval/<metric>` after
evaluations. `fkd.interop.loggers` has those of TensorBoard, JSON lines, wandb, trackio, mlflow."""

_log = logging.getLogger("fkd")


class Loggers:
    """Calls every logger. One that fails is said once, and tried again with the next values: a
    server that does not answer must not end a run.

    Args:
      loggers: to call.
    """

    def __init__(self, loggers: Sequence[Logger] = ()) -> None:
        self._loggers = tuple(loggers)
        self._failed: set[int] = set()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of a step."""
        for index, logger in enumerate(self._loggers):
            try:
                logger(step, dict(values))
            except Exception as error:
                if index not in self._failed:
                    _log.warning("loggers[%d]: %r; the run goes on", index, error)
                self._failed.add(index)
