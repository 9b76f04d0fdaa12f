"""What changes the numbers of a run without being part of its objective: said at a resume."""

from __future__ import annotations

import functools
from collections.abc import Sized
from typing import Any

import torch

from .._base.errors import MismatchError
from .._base.state import State, device_of
from .._checkpoint.manifest import differences
from .._checkpoint.schema import INTEGER, TEXT, Each, Of, validate
from .._data.batch import examples_in, normalised
from .._data.epochs import Loader, Mapped
from .._step.train_step import TrainStep

_SETTING = Of(
    "an integer, a string or null", lambda x: x is None or INTEGER.test(x) or TEXT.test(x)
)


def settings(step: TrainStep, state: State, loader: Loader) -> dict[str, Any]:
    """The settings of a run, as a checkpoint keeps them."""
    return {
        "seed": state.seed,
        "batch size": _batch_size(loader),
        "batches an epoch": _length(loader),
        "loader workers": getattr(loader, "num_workers", None),
        "processes": step.world.size,
        "device": device_of(state.trainable).type,
        "threads": torch.get_num_threads(),
        "compile": "eager" if step.options is None else f"compiled {step.options}",
        "float32 products": torch.get_float32_matmul_precision(),
        "torch": str(torch.__version__),
    }


def changed(saved: Any, here: dict[str, Any]) -> list[str]:
    """The settings that are others than in the checkpoint, a line each.

    Raises:
      MismatchError: the seed is another one: the run would be neither this nor that.
      DamagedError: the checkpoint has something else than settings.
    """
    validate(saved, Each(_SETTING), "its settings")
    if "seed" in saved and saved["seed"] != here["seed"]:
        raise MismatchError(
            f"fit: the run in this folder has the seed {saved['seed']}, and here it is "
            f"{here['seed']}. To go on with that run: step.init(seed={saved['seed']}). For a run "
            "of its own, use another folder."
        )
    both = [name for name in saved if name in here]
    return list(differences({n: saved[n] for n in both}, {n: here[n] for n in both}))


def _length(loader: Any) -> int | None:
    try:
        return len(loader) if isinstance(loader, Sized) else None
    except TypeError:  # a DataLoader of an iterable that does not know its length
        return None


def _batch_size(loader: Any) -> int | None:
    """So far as it is known before a batch is drawn: of a loader, of the one inside of it, or of
    a function of a seed that has it as an attribute or among its bound arguments."""
    while isinstance(loader, Mapped):
        loader = loader.loader
    if isinstance(loader, (list, tuple)) and loader:
        try:
            return examples_in(normalised(loader[0]))
        except (ValueError, TypeError):
            return None
    owners = (loader, getattr(loader, "batch_sampler", None))
    bound = loader.keywords if isinstance(loader, functools.partial) else {}
    sizes = (bound.get("batch_size"), *(getattr(owner, "batch_size", None) for owner in owners))
    return next((size for size in sizes if isinstance(size, int)), None)
