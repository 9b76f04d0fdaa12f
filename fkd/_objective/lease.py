"""How long a call keeps what it uses, and what it may not change."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor


class _Token:
    """Lives as long as the autograd nodes that it is written on."""


def when_freed(values: Any, release: Callable[[], object]) -> None:
    """Call `release` when no backward pass can start at `values` any more: at once if they have
    no graph, else when the last of their nodes is freed.

    Args:
      values: everything that a call has returned, in any nesting.
      release: takes no arguments; may be called from any thread.
    """
    nodes = [x.grad_fn for x in _tensors_in(values, set()) if x.grad_fn is not None]
    if not nodes:
        release()
        return
    token = _Token()
    for node in nodes:
        written: Any = node.metadata  # which torch declares as a method, and has as a dict
        written[token] = None
    weakref.finalize(token, release).atexit = False


def _tensors_in(value: Any, visited: set[int]) -> Iterator[Tensor]:
    """The tensors of any nesting of mappings, sequences and objects with attributes."""
    if isinstance(value, Tensor):
        yield value
        return
    if id(value) in visited or isinstance(value, str | bytes | int | float | type | None):
        return
    visited.add(id(value))
    if isinstance(value, Mapping):
        inner = list(value.values())
    elif isinstance(value, tuple | list | set | frozenset):
        inner = list(value)
    else:
        inner = []
    for child in [*inner, *getattr(value, "__dict__", {}).values()]:
        yield from _tensors_in(child, visited)


def same_shapes(before: Mapping[str, Tensor], after: dict[str, Tensor]) -> dict[str, Tensor]:
    """The buffers after a forward pass, of which each has to be as large as it was before.

    Raises:
      ValueError: one is not, as those of observers for quantization that have seen no data.
    """
    for name, x in before.items():
        if after[name].shape != x.shape:
            raise ValueError(
                f"the forward pass gives the buffer {name!r} another shape, {tuple(x.shape)} -> "
                f"{tuple(after[name].shape)}; a step keeps shapes. Run the module once, "
                "module(x), before it is given to fkd.trainable: its buffers then have their sizes."
            )
    return after
