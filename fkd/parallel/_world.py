"""What the processes of a run tell each other on the host: agreements, errors, who writes.

Nothing here waits for a device. Objects travel as JSON, never as pickles.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")


class RankError(RuntimeError):
    """Another process of the run has failed, or does not answer; says which, and why."""


@dataclass(frozen=True, eq=False)
class World:
    """The processes of a run.

    Attributes:
      group: their process group on the host (gloo).
      size: how many they are.
      rank: which of them this one is.
    """

    group: dist.ProcessGroup
    size: int
    rank: int

    @property
    def first(self) -> bool:
        """Whether this process writes what the run has once."""
        return self.rank == 0

    def exchanged(self, value: Any) -> list[Any]:
        """What every process says, in the order of the ranks. All of them have to ask.

        Args:
          value: anything that JSON can say.
        """
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(own)]), group=self.group)
        most = max(int(size) for size in sizes)
        padded = torch.cat([own, own.new_zeros(most - len(own))])
        texts = [torch.zeros(most, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(texts, padded, group=self.group)
        said = zip(texts, sizes, strict=True)
        return [json.loads(bytes(text[: int(size)].tolist())) for text, size in said]

    def greatest(self, value: int) -> int:
        """The greatest of the numbers of all processes. All of them have to ask."""
        number = torch.tensor([value])
        dist.all_reduce(number, dist.ReduceOp.MAX, group=self.group)
        return int(number)

    def from_first(self, fn: Callable[[], T]) -> T | None:
        """What `fn` gives in the first process, which alone runs it; None in the others.

        Raises:
          RankError: in the others, if it failed in the first, where its own error is raised.
        """
        result, error = None, None
        if self.first:
            try:
                result = fn()
            except BaseException as raised:
                error = raised
        message = None if error is None else f"{type(error).__name__}: {error}"
        told = self.exchanged(message)[0]
        if error is not None:
            raise error
        if told is not None:
            raise RankError(f"rank 0 failed: {told}")
        return result

    def shared(self, fn: Callable[[], Any]) -> Any:
        """What `fn` gives in the first process, told to all; anything that JSON can say."""
        said = self.from_first(fn)
        return self.exchanged(said if self.first else None)[0]

    def broadcast(self, x: Tensor) -> None:
        """Overwrite a tensor of every process, in any place and order of axes, by the first's."""
        host = x.detach().cpu().contiguous()
        flat = host.reshape(-1).view(torch.uint8)
        dist.broadcast(flat, group_src=0, group=self.group)
        with torch.no_grad():
            x.copy_(host)


def world_of(mesh: DeviceMesh) -> World:
    """The processes of a mesh, with a group that works on the host."""
    ranks = [int(rank) for rank in mesh.mesh.flatten().tolist()]
    everyone = dist.group.WORLD
    if everyone is not None and len(ranks) == dist.get_world_size() and _on_host(everyone):
        group = everyone
    else:
        made = dist.new_group(ranks, backend="gloo")
        assert isinstance(made, dist.ProcessGroup)
        group = made
    return World(group, dist.get_world_size(group), dist.get_rank(group))


def _on_host(group: dist.ProcessGroup) -> bool:
    return "gloo" in str(dist.get_backend(group))
