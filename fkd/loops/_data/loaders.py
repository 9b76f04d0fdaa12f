"""What is given for a loader and is none: what it is, and what to give instead."""

from __future__ import annotations

import inspect
import itertools
import os
import types
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch.utils.data import Dataset

from fkd._base.errors import expect

_ENDLESS = (itertools.count, itertools.cycle, itertools.repeat)


def expect_loader(function: str, name: str, loader: object) -> None:
    """Refuse what gives no batches, before any is asked for.

    Raises:
      TypeError: it is one batch, a data set, a path, a function that takes no seed, or nothing
        that can be iterated.
    """
    fix = "Put it into a list: [batch]."
    if isinstance(loader, (Mapping, torch.Tensor)):
        raise TypeError(
            f"{function}: {name} is a {type(loader).__name__}, which looks like one batch; an "
            f"iterable of batches is expected. {fix}"
        )
    if isinstance(loader, str | bytes | os.PathLike):
        raise TypeError(
            f"{function}: {name} is {loader!r}; an iterable of batches is expected, such as a "
            "DataLoader of what the file holds."
        )
    if _is_data_set(loader):
        raise TypeError(
            f"{function}: {name} is a {type(loader).__name__}, which gives samples; batches are "
            "expected: torch.utils.data.DataLoader(dataset, batch_size=32, shuffle=True)."
        )
    if not callable(loader) and not hasattr(loader, "__iter__"):
        expect(function, name, loader, Iterable, "an iterable of batches", fix)
    if callable(loader) and not isinstance(loader, Iterable):
        _takes_a_seed(function, name, loader)


def gives_once(loader: object) -> bool:
    """Whether a loader is known to give its batches once, and nothing when it is asked again.

    An iterator of a class of one's own may begin again.
    """
    if isinstance(loader, types.GeneratorType):
        return True
    builtin = type(loader).__module__ in ("builtins", "itertools")
    return isinstance(loader, Iterator) and builtin and not isinstance(loader, _ENDLESS)


def expect_again(function: str, name: str, loader: object, why: str) -> None:
    """Refuse a loader that gives its batches once, where they are asked for more often.

    Raises:
      ValueError: it does.
    """
    if gives_once(loader):
        raise ValueError(
            f"{function}: {name} is a {type(loader).__name__}, which can be used only once, and "
            f"{why}. Give a DataLoader, a list, or a function of a seed that makes them: "
            f"{name}=lambda seed: batches()."
        )


def _is_data_set(loader: object) -> bool:
    if type(loader).__module__.partition(".")[0] == "datasets":  # of Hugging Face
        return True
    return isinstance(loader, Dataset) and not hasattr(loader, "__iter__")


def _takes_a_seed(function: str, name: str, loader: object) -> None:
    try:
        signature = inspect.signature(loader)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):  # a builtin
        return
    try:
        signature.bind(0)
    except TypeError as error:
        raise TypeError(
            f"{function}: {name} is a function{signature} ({error}); it is called with a seed, and "
            f"gives the batches of an epoch: {name}=lambda seed: batches()."
        ) from None
