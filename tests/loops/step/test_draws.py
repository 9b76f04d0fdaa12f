"""What a model draws while it trains follows the seed, in any number of threads."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fkd import Objective, batch, student, term, trainable
from fkd.loops import train_step
from fkd.losses import cross_entropy

from ...models import sgd


class DrawsOnTheHost(torch.nn.Module):
    """Masks what NumPy and Python draw in the forward pass, as SpecAugment does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 3)

    def forward(self, x):
        keep = np.random.rand(8) < 0.5 + 0.1 * random.random()
        return self.linear(x * torch.tensor(keep, dtype=x.dtype))


class Dropped(torch.nn.Module):
    """Dropout, from torch's own generator."""

    def __init__(self, layers: int = 1) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(layers - 1))
        self.linear = torch.nn.Linear(8, 3)

    def forward(self, x):
        for layer in self.layers:
            x = torch.nn.functional.dropout(torch.relu(layer(x)), 0.5, self.training)
        return torch.nn.functional.dropout(self.linear(x), 0.5, self.training)


def data() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 8, generator=generator)
    return {"x": x, "y": torch.randint(3, (16,), generator=generator)}


def trained(model: torch.nn.Module, seed: int, steps: int = 4, **options: Any) -> list[float]:
    objective = Objective(
        {"ce": term(cross_entropy, student.logits, batch.y)}, student=trainable(model)
    )
    step = train_step(objective, sgd, **{"compile": False, **options})
    state, found = step.init(seed), []
    for _ in range(steps):
        state, metrics = step(state, data())
        found.append(metrics["loss/total"].item())
    return found


@pytest.mark.plain  # the type checker itself draws from `random`
@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_a_model_draws_from_numpy_and_python_follows_the_seed(accumulate):
    model = DrawsOnTheHost()
    first = trained(model, 0, accumulate=accumulate)
    np.random.rand(5), random.random()
    assert trained(model, 0, accumulate=accumulate) == first
    assert trained(model, 1, accumulate=accumulate) != first


@pytest.mark.plain
def test_a_first_step_leaves_the_generators_as_they_were():
    model = DrawsOnTheHost()

    def drawn() -> tuple[float, float, float]:
        return random.random(), np.random.rand(), torch.rand(()).item()

    def seed() -> None:
        random.seed(3), np.random.seed(3), torch.manual_seed(3)

    seed()
    expected = drawn()
    seed()
    trained(model, 0, 1)
    assert drawn() == expected


def in_threads(work: Callable[[int], Any], count: int) -> dict[int, Any]:
    """What `work(i)` gives in each of some threads that begin at one moment."""
    found, start = dict[int, Any](), threading.Barrier(count)

    def run(i: int) -> None:
        start.wait()
        found[i] = work(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.plain
@pytest.mark.parametrize("kind", [DrawsOnTheHost, Dropped])
def test_runs_in_several_threads_have_the_bits_that_each_has_alone(kind):
    models = {seed: kind() for seed in range(4)}
    alone = {seed: trained(model, seed, 20) for seed, model in models.items()}
    assert in_threads(lambda seed: trained(models[seed], seed, 20), len(models)) == alone


@pytest.mark.compile
def test_compiled_runs_in_several_threads_have_the_bits_that_each_has_alone():
    models = [Dropped(), Dropped(layers=2)]

    def run(i: int) -> list[float]:
        return trained(models[i], i, 10, compile=True)

    found = in_threads(run, len(models))
    assert found == {i: run(i) for i in range(len(models))}
