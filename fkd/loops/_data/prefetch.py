"""Batches on their way to the device, while it is busy with the batch before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from fkd._trees import map_tensors
from fkd._types import Batch

from .batch import leaves, tensors_only

Copy: TypeAlias = Callable[[Batch], Any]
"""`copy(batch)`: the batch on a device, without what is no tensor."""


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


def to_device(device: torch.device, transfer: Transfer | None = None) -> Copy:
    """The function that copies batches to a device: on CUDA beside the computation, elsewhere
    as ever.

    Args:
      device: where to.
      transfer: how; None: by CUDA streams if it is a CUDA device.
    """
    if transfer is None and device.type == "cuda":
        transfer = CudaTransfer(device)
    if transfer is None:
        return lambda batch: tensors_only(batch, device)
    chosen = transfer

    def copy(batch: Batch) -> Any:
        held = tensors_only(batch)
        if any(x.device.type != "cpu" for _, x in leaves(held)):
            return tensors_only(held, device)  # made by a computation, which it must wait for
        pinned = map_tensors(chosen.pinned, held)
        made = chosen.copied(lambda: tensors_only(pinned, device))
        chosen.handed_over([x for _, x in leaves(made)])
        return made

    return copy


def prefetch(
    batches: Iterable[Batch], device: torch.device | str, *, transfer: Transfer | None = None
) -> Iterator[Any]:
    """The batches on a device, each copied while the step before it still runs there.

    The host does not wait for a step: when it asks for the next batch, the device has just
    begun with the step before. So no batch is drawn ahead: a batch is made when it is asked for,
    pinned, and copied on a stream of its own, next to that step. Order, errors and random
    numbers of the loader are those without it, and nothing is drawn beyond the last batch that
    is used. `fit` copies its batches in the same way by itself.

    On other devices than CUDA, a plain copy.

    Args:
      batches: a `DataLoader`, or any iterable of batches.
      device: where to.
      transfer: the operations of the copy, for devices with streams of another kind.

    Returns:
      An iterator over the batches, without what is no tensor (text, None).

    Example:
      >>> from fkd.loops import prefetch
      >>> [made["x"].sum().item() for made in prefetch([{"x": torch.ones(3)}], "cpu")]
      [3.0]
    """
    return map(to_device(torch.device(device), transfer), iter(batches))
