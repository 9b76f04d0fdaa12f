"""`epochs` and `steps` are totals: where a run is in them, and where it ends."""

from __future__ import annotations

import logging
from typing import Any

from .._data.epochs import Loader
from .options import Options

_log = logging.getLogger("fkd")


def position_of(step: int, options: Options, loader: Loader) -> dict[str, int]:
    """The place in the data of a state that was given at a step: `epochs` and `steps` are totals,
    here as in a run that is resumed."""
    length = length_of(loader)
    if step == 0 or (length is None and options.epochs is None):
        return {}
    if length is None:
        raise ValueError(
            f"fit: the state is at step {step}, and the loader has no length, so that the epochs "
            "behind it cannot be counted. Give steps (the total) instead of epochs, or begin a "
            "new run with state._replace(step=0)."
        )
    epoch, index = divmod(step, length)
    if options.epochs is not None and epoch >= options.epochs:
        _log.warning(
            "fit: nothing is left to do: the state is at step %d, which is epoch %d of this "
            "loader, and epochs=%d is the total. Give more epochs to go on, or begin a new run "
            "with state._replace(step=0).",
            *(step, epoch, options.epochs),
        )
    return {"epoch": epoch, "index": index}


def total_steps(options: Options, loader: Loader) -> int | None:
    """The end of the run, if it is known before."""
    length = length_of(loader)
    by_epochs = options.epochs * length if options.epochs and length else None
    return min(filter(None, (options.steps, by_epochs)), default=None)


def length_of(loader: Any) -> int | None:
    """How many batches an epoch has, if the loader knows."""
    try:
        return len(loader) or None
    except TypeError:  # an iterable, or a DataLoader of one, that does not know its length
        return None
