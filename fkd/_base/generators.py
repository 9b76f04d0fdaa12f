"""torch's generators of random numbers, seeded for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

import torch


@contextlib.contextmanager
def torch_seeded(seed: int, device: torch.device) -> Generator[None]:
    """torch's random numbers from a seed inside, and its generators as they were afterwards.

    `torch.manual_seed` would note the place of each call for every kind of device that this
    process does not use.
    """
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    before = [generator.get_state() for generator in generators]
    for generator in generators:
        generator.manual_seed(seed)
    try:
        yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)
