"""The order of the data: a function of (seed, epoch), and of nothing that happened before."""

from __future__ import annotations

import random
from typing import ClassVar

import numpy as np
import pytest
import torch

from fkd.loops import LoopError
from fkd.loops._data.epochs import Mapped, epoch_batches

from ..training import LOADERS, batches


def xs(made):
    return [b["x"].nan_to_num(9.0).flatten().tolist() for b in made]


@pytest.mark.parametrize("name", LOADERS)
def test_the_same_seed_and_epoch_give_the_same_batches(name):
    loader = LOADERS[name]()
    first = xs(epoch_batches(loader, 1, 0))
    random.seed(5), np.random.seed(6), torch.manual_seed(7)
    assert xs(epoch_batches(loader, 1, 0)) == first
    assert xs(epoch_batches(LOADERS[name](), 1, 0, skip=3)) == first[3:]
    if name != "list":
        assert xs(epoch_batches(loader, 1, 1)) != first != xs(epoch_batches(loader, 2, 0))


def test_what_happens_between_two_batches_does_not_change_the_next():
    loader = LOADERS["shuffled"]()
    quiet = xs(epoch_batches(loader, 1, 0))
    loud = []
    for made in epoch_batches(loader, 1, 0):
        loud += xs([made])
        random.random(), np.random.rand(), torch.rand(3)
        list(epoch_batches(LOADERS["shuffled"](), 9, 9))
    assert loud == quiet


def test_samplers_are_told_the_epoch():
    class Sampler:
        epochs: ClassVar[list[int]] = []

        def set_epoch(self, epoch: int) -> None:
            self.epochs.append(epoch)

    class Loader(list):
        sampler = Sampler()

    for epoch in (0, 4):
        list(epoch_batches(Loader(batches()), 0, epoch))
    assert Sampler.epochs == [0, 4]


def test_an_epoch_that_has_become_shorter_is_said_so():
    assert list(epoch_batches(batches(), 0, 0, skip=5)) == []
    with pytest.raises(LoopError, match="gave 5 batches, and the run was at batch 6"):
        list(epoch_batches(batches(), 0, 0, skip=6))


@pytest.mark.parametrize("skip", [0, 3])
def test_a_loader_with_a_function_has_the_order_and_the_place_of_the_loader(skip):
    rows = torch.arange(20)
    plain = torch.utils.data.DataLoader(rows, batch_size=4, shuffle=True)
    expected = [2 * x + 1 for x in epoch_batches(plain, 3, 1)]
    seen: list[torch.Tensor] = []

    def doubled(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return 2 * x

    for loader in (
        Mapped(lambda x: x + 1, Mapped(doubled, plain)),
        lambda seed: Mapped(lambda x: x + 1, Mapped(doubled, plain)),
    ):
        seen.clear()
        batches = list(epoch_batches(loader, 3, 1, skip=skip))
        assert all(map(torch.equal, batches, expected[skip:])) and len(batches) == 5 - skip
        assert len(seen) == 5 - skip  # nothing is computed for what is skipped
