"""A strict run time: deterministic kernels, and nothing compiled left over from another test."""

from __future__ import annotations

import gc
import os

import pytest

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(autouse=True)
def _strict(request: pytest.FixtureRequest):
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    if request.node.get_closest_marker("compile"):
        torch._dynamo.reset()
    yield
    torch.use_deterministic_algorithms(before)


def pytest_collection_finish() -> None:
    # What is imported by now stays. To look at it in every collection was a fifth of the time.
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()
