"""How a loader is put at its place in an epoch: by index, by its own state, or not at all.

By index, no batch is made for nothing: the sampler alone is asked for the indices before the place.
That is exact, as every index and every batch is drawn with generators that were seeded from its
number, in this process and in workers. What has a generator of its own is beyond that.
"""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from .._base.errors import LoopError
from .._base.random import fold_in, seeded

CPU = torch.device("cpu")
_ORDER = 1 << 32  # folded into the seed of a batch: the seed of its indices
_GENERATORS = (np.random.Generator, np.random.RandomState, random.Random, torch.Generator)


@runtime_checkable
class Stateful(Protocol):
    """What can say its place, and be put there: loaders of torchdata and litdata, iterable
    datasets of Hugging Face."""

    def state_dict(self) -> dict[str, Any]:
        """The place."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Begin there at the next iteration."""
        ...


def stateful(loader: object) -> Stateful | None:
    """What of a loader can say its place exactly: the loader, or the dataset that it reads in this
    process."""
    if _has_shuffle_buffer(loader) or _has_shuffle_buffer(getattr(loader, "dataset", None)):
        return None
    if isinstance(loader, Stateful):
        return loader
    if _is_plain(loader) and isinstance(loader.dataset, Stateful) and loader.num_workers == 0:
        return loader.dataset if isinstance(loader.dataset, IterableDataset) else None
    return None


def _has_shuffle_buffer(dataset: object) -> bool:
    """Whether an iterable dataset of Hugging Face shuffles in a buffer: the place that it says
    leaves out what was in the buffer, so that other examples would follow."""
    waiting: list[Any] = [getattr(dataset, "_ex_iterable", None)]
    while waiting:
        part = waiting.pop()
        if type(part).__name__ == "BufferShuffledExamplesIterable":
            return True
        inside = [getattr(part, "ex_iterable", None), *(getattr(part, "ex_iterables", None) or ())]
        waiting += [x for x in inside if x is not None]
    return False


def by_index(loader: object) -> bool:
    """Whether the batches of a loader have indices: a list, or a `DataLoader` over a dataset that
    has them."""
    if isinstance(loader, Sequence):
        return type(loader).__iter__ in (list.__iter__, tuple.__iter__, Sequence.__iter__)
    if not isinstance(loader, Iterable):
        return hasattr(loader, "__getitem__")
    return _is_plain(loader) and not isinstance(loader.dataset, IterableDataset)


def indexed(loader: Any, start: int) -> Iterator[Any]:
    """The items of a list from number `start` on."""
    if hasattr(loader, "__len__") and len(loader) < start:
        raise LoopError(shorter(len(loader), start))
    index = start
    while True:
        try:
            item = loader[index]
        except IndexError:
            return
        yield item
        index += 1


def shorter(batches: int, start: int) -> str:
    """What to say of an epoch that ends before its place."""
    return (
        f"the loader gave {batches} batches, and the run was at batch {start} of the epoch when "
        "it was saved. Give it the same data."
    )


def draws_by_itself(loader: object) -> bool:
    """Whether a `DataLoader` may draw from generators that are not seeded for every batch: of its
    dataset, its collate function, or made by `worker_init_fn`."""
    if not isinstance(loader, DataLoader):
        return False
    if loader.num_workers and loader.worker_init_fn is not None:
        return True
    return any(_holds_generator(x, 5) for x in (loader.dataset, loader.collate_fn))


def _holds_generator(x: Any, depth: int) -> bool:
    if isinstance(x, _GENERATORS):
        return True
    if depth == 0 or isinstance(x, type | torch.Tensor | np.ndarray | str | bytes | int | float):
        return False
    return any(_holds_generator(inside, depth - 1) for inside in _inside(x))


def _inside(x: Any, *, most: int = 64) -> list[Any]:
    """What an object holds; of a long container the first parts."""
    if isinstance(x, Mapping):
        return list(x.values())[:most]
    if isinstance(x, list | tuple | set | frozenset):
        return list(x)[:most]
    if isinstance(x, functools.partial):
        return [x.func, *x.args, *x.keywords.values()]
    cells = [cell.cell_contents for cell in getattr(x, "__closure__", None) or () if _full(cell)]
    bound = [x.__self__] if hasattr(x, "__self__") else []
    fields = [] if hasattr(x, "__code__") else list(getattr(x, "__dict__", {}).values())
    return [*cells, *bound, *fields][:most]


def _full(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018  raises if nothing was assigned yet
    except ValueError:
        return False
    return True


def _is_plain(loader: object) -> TypeGuard[DataLoader[Any]]:
    """Whether it is a `DataLoader` that iterates as torch's own does."""
    return isinstance(loader, DataLoader) and type(loader).__iter__ is DataLoader.__iter__


class NumberedLoader:
    """A `DataLoader` whose batches are functions of their number, and which can begin at any.

    It is the user's loader with another sampler, which gives the same indices. A worker that
    receives them seeds its generators from the number of the batch.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        name = "sampler" if loader.batch_sampler is None else "batch_sampler"
        self._indices = _NumberedIndices(getattr(loader, name), workers=loader.num_workers > 0)
        self._loader = copy.copy(loader)
        # torch refuses to set a sampler, since an iterator at work would not see it.
        vars(self._loader).update({name: self._indices, "_iterator": None})

    def from_batch(self, seed: int, start: int) -> Iterator[Any]:
        """The batches of the epoch with this seed from number `start` on."""
        self._indices.seed, self._indices.start = seed, start
        return iter(self._loader)


class _NumberedIndices:
    """The indices of a sampler, drawn with generators that are seeded for each."""

    def __init__(self, sampler: Iterable[Any], *, workers: bool) -> None:
        self.sampler, self.workers = sampler, workers
        self.seed = self.start = 0

    def __len__(self) -> int:
        return len(self.sampler)  # pyright: ignore[reportArgumentType]

    def __iter__(self) -> Iterator[Any]:
        seed, start, number = self.seed, self.start, 0
        with seeded(fold_in(seed, _ORDER), CPU):
            drawn = iter(self.sampler)
        while True:
            batch_seed = fold_in(seed, number + 1)
            with seeded(fold_in(batch_seed, _ORDER), CPU):
                try:
                    indices = next(drawn)
                except StopIteration:
                    break
            if number >= start:
                yield _ForWorker(indices, batch_seed) if self.workers else indices
            number += 1
        if number < start:
            raise LoopError(shorter(number, start))


class _ForWorker:
    """Indices on their way to a worker, which seeds its generators when it receives them."""

    def __init__(self, indices: Any, seed: int) -> None:
        self.indices, self.seed = indices, seed

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, int]]:
        return _received, (self.indices, self.seed)


def _received(indices: Any, seed: int) -> Any:
    """In the worker, just before it makes the batch."""
    random.seed(seed)
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
    torch.manual_seed(seed)
    return indices
