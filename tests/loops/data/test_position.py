"""A resumed run begins at its place: at once where that is exact, else by drawing again."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler

from fkd.loops import BucketBatchSampler, LoopError
from fkd.loops._data.epochs import Epochs, epoch_batches

from ..training import batches


class Counted(Dataset[Any]):
    """Examples with noise from all global generators; counts those that are made here."""

    def __init__(self, rng: Any = None) -> None:
        self.made: list[int] = []
        self.rng = rng

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> torch.Tensor:
        self.made.append(index)
        noise = random.random() + float(np.random.rand()) + torch.rand(()).item()
        own = 0.0 if self.rng is None else self.rng.random()
        return torch.tensor([index, noise, own], dtype=torch.float64)


def shuffled(data: Counted, **options: Any) -> Any:
    return DataLoader(data, batch_size=2, shuffle=True, **options)


def buckets(data: Counted) -> Any:
    sampler = BucketBatchSampler([3, 9, 4, 8] * 3, batch_size=2, buckets=2, multiple=1)
    return DataLoader(data, batch_sampler=sampler)


def nested(data: Counted) -> Any:
    own = RandomSampler(data, generator=torch.Generator().manual_seed(3))
    return DataLoader(data, batch_sampler=BatchSampler(own, 2, drop_last=False))


LOADERS: dict[str, Any] = {
    "shuffled": shuffled,
    "workers": lambda data: shuffled(data, num_workers=2),
    "kept workers": lambda data: shuffled(data, num_workers=2, persistent_workers=True),
    "buckets": buckets,
    "a generator inside": nested,
    "without batches": lambda data: DataLoader(data, batch_size=None, shuffle=True),
    "function": lambda data: lambda seed: shuffled(data),
}


def drawn(found: Any) -> list[Any]:
    return [x.flatten().tolist() for x in found]


@pytest.mark.parametrize("name", LOADERS)
def test_at_its_place_at_once_and_bit_for_bit(name):
    make, data = LOADERS[name], Counted()
    whole = Epochs(make(data), 1)
    first, second = drawn(whole.batches(0)), drawn(whole.batches(1))
    assert first != second and drawn(whole.batches(0)) == first
    for skip in (1, 4):
        again, told = Counted(), []
        epochs = Epochs(make(again), 1, told=lambda i, n: told.append(i))  # noqa: B023
        assert drawn(epochs.batches(0, skip=skip)) == first[skip:]
        assert drawn(epochs.batches(1)) == second
        assert told == [] and len(again.made) in (0, 24 - skip * len(first[0]) // 3)


def test_workers_change_nothing():
    few = [drawn(epoch_batches(shuffled(Counted(), num_workers=n), 1, 0)) for n in (1, 2)]
    assert few[0] == few[1]


@pytest.mark.parametrize(
    "rng", [np.random.default_rng(0), random.Random(0), {"deep": [np.random.RandomState(0)]}]
)
def test_what_has_a_generator_of_its_own_is_drawn_again(rng):
    told: list[Any] = []
    data = Counted()
    data.holder = rng  # type: ignore[attr-defined]
    epochs = Epochs(shuffled(data), 1, told=lambda *now: told.append(now))
    rest = drawn(epochs.batches(0, skip=3))
    assert told == [(1, 3), (2, 3), (3, 3)] and len(data.made) == 12
    assert rest == drawn(epoch_batches(shuffled(Counted()), 1, 0))[3:]


def test_numbers_of_a_datasets_own_generator_are_exact_too():
    whole = drawn(epoch_batches(shuffled(Counted(np.random.default_rng(5))), 1, 0))
    rest = drawn(epoch_batches(shuffled(Counted(np.random.default_rng(5))), 1, 0, skip=4))
    assert rest == whole[4:]


class ByIndex:
    """Without `__iter__`: torch's datasets with indices are so."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __getitem__(self, index: int) -> int:
        self.asked.append(index)
        return [10, 11, 12][index]


class Listed(ByIndex, Sequence[int]):
    """With that of `Sequence`, which goes by index."""

    def __len__(self) -> int:
        return 3


@pytest.mark.plain  # the run-time type check refuses the first, which is not an Iterable
@pytest.mark.parametrize("loader", [ByIndex(), Listed()])
def test_what_has_indices_begins_at_once(loader):
    assert list(epoch_batches(loader, 0, 0, skip=2)) == [12]
    assert loader.asked == [2, 3]


def test_lists_begin_at_once_and_short_epochs_are_said_so():
    assert list(epoch_batches([1, 2, 3], 0, 0, skip=2)) == [3]
    for short in ([1], DataLoader(Counted(), batch_size=12)):
        with pytest.raises(LoopError, match="gave 1 batches, and the run was at batch 2"):
            list(epoch_batches(short, 0, 0, skip=2))


class Stream:
    """A loader that can say its place, and counts what it makes."""

    def __init__(self) -> None:
        self.at, self.begin, self.made = 0, 0, 0

    def __iter__(self) -> Any:
        self.at, self.begin = self.begin, 0
        while self.at < 5:
            self.made += 1
            self.at += 1
            yield {"x": torch.rand(2) + self.at}

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.begin = state_dict["at"]


class Streamed(Stream, IterableDataset[Any]):
    """The same as the dataset of a DataLoader."""


@pytest.mark.parametrize(
    "make",
    [lambda: (s := Stream(), s), lambda: (s := Streamed(), DataLoader(s, batch_size=None))],
)
def test_a_loader_that_says_its_place_is_put_there(make):
    whole = [b["x"].tolist() for b in epoch_batches(make()[1], 1, 0)]
    epochs = Epochs(make()[1], 1)
    begun = epochs.batches(0)
    head = [next(begun)["x"].tolist() for _ in range(2)]  # type: ignore[index, call-overload]
    place = epochs.place()
    assert head == whole[:2] and place == {"at": 2}
    stream, loader = make()
    tail = [b["x"].tolist() for b in Epochs(loader, 1).batches(0, skip=2, place=place)]
    assert tail == whole[2:] and stream.made == 3
    stream, loader = make()  # a checkpoint without its place
    assert [b["x"].tolist() for b in Epochs(loader, 1).batches(0, skip=2)] == whole[2:]
    assert stream.made == 5


@pytest.mark.parametrize("shuffled_in_buffer", [False, True])
def test_a_place_that_leaves_a_buffer_out_is_not_taken(shuffled_in_buffer: bool):
    datasets = pytest.importorskip("datasets")

    def loader() -> DataLoader[Any]:
        rows = datasets.Dataset.from_dict({"x": [[float(i)] for i in range(24)]})
        stream = rows.to_iterable_dataset(num_shards=2).map(lambda row: {"x": row["x"] + [1.0]})
        stream = stream.shuffle(seed=1, buffer_size=8) if shuffled_in_buffer else stream
        return DataLoader(stream.with_format("torch"), batch_size=4)

    whole = [b["x"].tolist() for b in epoch_batches(loader(), 1, 0)]
    epochs = Epochs(loader(), 1)
    begun = epochs.batches(0)
    assert [next(begun)["x"].tolist() for _ in range(2)] == whole[:2]  # type: ignore[index, call-overload]
    place = epochs.place()
    assert (place is None) is shuffled_in_buffer
    tail = Epochs(loader(), 1).batches(0, skip=2, place=place)
    assert [b["x"].tolist() for b in tail] == whole[2:]


def test_between_epochs_and_after_a_fault_there_is_no_place():
    epochs = Epochs(Stream(), 1)
    assert epochs.place() is None
    assert len(list(epochs.batches(0))) == 5 and epochs.place() is None


def test_other_loaders_are_drawn_again_and_it_is_told():
    told: list[Any] = []
    epochs = Epochs(lambda seed: iter(batches()), 1, told=lambda *now: told.append(now))
    assert len(list(epochs.batches(0, skip=3))) == 2
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_the_loader_is_left_as_it_was():
    loader = shuffled(Counted())
    sampler, own = loader.sampler, loader.batch_sampler
    list(epoch_batches(loader, 1, 0, skip=2))
    assert loader.sampler is sampler and loader.batch_sampler is own
    assert len(list(loader)) == 6


def test_the_users_generators_are_as_they_were():
    states = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
    for _ in epoch_batches(shuffled(Counted()), 1, 0):
        pass
    now = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
    assert states == now
