"""Batches on their way to the device, while it is busy with the batch before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from fkd._base.trees import map_tensors
from fkd._base.types import Batch, TensorBatch

from .batch import leaves, normalised

Move: TypeAlias = Callable[[TensorBatch], TensorBatch]
"""`move(batch)`: a normalised batch on a device."""


@runtime_checkable
class Transfer(Protocol):
    """The three operations of a copy beside the computation."""

    def pinned(self, x: Tensor) -> Tensor:
        """The tensor in memory that the device can read while the host goes on."""
        ...

    def copied(self, copy: Callable[[], Any]) -> Any:
        """What `copy` gives; its copies run beside the computation that is under way."""
        ...

    def handed_over(self, tensors: list[Tensor]) -> None:
        """The computation waits for the copies, and their memory for the computation."""
        ...


class CudaTransfer:
    """Copies on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def pinned(self, x: Tensor) -> Tensor:
        """See `Transfer`."""
        return x if x.is_pinned() else x.pin_memory()

    def copied(self, copy: Callable[[], Any]) -> Any:
        """See `Transfer`."""
        with torch.cuda.stream(self.stream):
            return copy()

    def handed_over(self, tensors: list[Tensor]) -> None:
        """See `Transfer`."""
        here = torch.cuda.current_stream(self.device)
        here.wait_stream(self.stream)
        for x in tensors:
            x.record_stream(here)  # not to be given to the next copy while a step reads it


def mover(device: torch.device, transfer: Transfer | None = None) -> Move:
    """The function that copies normalised batches to a device: on CUDA beside the computation,
    elsewhere in the ordinary way.

    Args:
      device: where to.
      transfer: how; None: by CUDA streams if it is a CUDA device.
    """
    if transfer is None and device.type == "cuda":
        transfer = CudaTransfer(device)
    chosen = transfer

    def plainly(batch: TensorBatch) -> TensorBatch:
        return map_tensors(lambda x: x.to(device, non_blocking=device.type != "cpu"), batch)

    def beside(batch: TensorBatch) -> TensorBatch:
        assert chosen is not None
        if any(x.device.type != "cpu" for _, x in leaves(batch)):
            return plainly(batch)  # made by a computation, which it must wait for
        pinned = map_tensors(chosen.pinned, batch)
        moved = chosen.copied(lambda: plainly(pinned))
        chosen.handed_over([x for _, x in leaves(moved)])
        return moved

    return plainly if transfer is None else beside


def to_device(
    device: torch.device, transfer: Transfer | None = None
) -> Callable[[Batch], TensorBatch]:
    """The function that normalises a batch and copies it to a device; see `mover`."""
    move = mover(device, transfer)
    return lambda batch: move(normalised(batch))


def prefetch(
    batches: Iterable[Batch], device: torch.device | str, *, transfer: Transfer | None = None
) -> Iterator[TensorBatch]:
    """The batches on a device, each copied while the step before it still runs there.

    The host does not wait for a step: when it asks for the next batch, the device has just
    begun with the step before. So no batch is drawn ahead: a batch is made when it is asked for,
    pinned, and copied on a stream of its own, next to that step. Order, errors and random
    numbers of the loader are those without it, and nothing is drawn beyond the last batch that
    is used. `fit` copies its batches in the same way by itself.

    On other devices than CUDA, an ordinary copy.

    Args:
      batches: a `DataLoader`, or any iterable of batches.
      device: where to.
      transfer: the operations of the copy, for devices with streams of another kind.

    Returns:
      An iterator over the batches, without what is not a tensor (text, None).

    Example:
      >>> from fkd.loops import prefetch
      >>> [made["x"].sum().item() for made in prefetch([{"x": torch.ones(3)}], "cpu")]
      [3.0]
    """
    return map(to_device(torch.device(device), transfer), iter(batches))
