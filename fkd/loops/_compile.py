"""How fkd calls `torch.compile`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping
from typing import Any

import torch
import torch._dynamo.config


def compiled(fn: Callable[..., Any], options: Mapping[str, Any] | None) -> Callable[..., Any]:
    """A function as one graph for each input shape; as it is if `options` is None.

    Args:
      fn: a pure function of tensors.
      options: for `torch.compile`, such as `{"mode": "max-autotune"}`.
    """
    if options is None:
        return fn
    chosen: dict[str, Any] = {"fullgraph": True, "dynamic": False, **options}
    return torch.compile(fn, **chosen)


@contextlib.contextmanager
def unlimited_recompilation() -> Generator[None]:
    """Compile for every new shape, however many there are; torch would give up after eight."""
    with torch._dynamo.config.patch(recompile_limit=10_000, accumulated_recompile_limit=100_000):
        yield
