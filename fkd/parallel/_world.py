"""What the processes of a run tell each other on the host: agreements, errors, who writes.

Nothing here waits for a device. Objects travel as JSON, never as pickles. Every exchange begins
with four numbers of each process; so one that has failed can say so wherever the others are, and
all of them end with its message.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Generator, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from ._blame import culprit, says_failed
from ._launch import can_start_again, forget_addresses

T = TypeVar("T")

FAILED = -1
"""Says that a process has failed, where the first of the four numbers stands."""


class RankError(RuntimeError):
    """Another process of the run has failed, or does not answer; says which, and why."""


class World:
    """The processes of a run.

    Attributes:
      group: their process group on the host (gloo); None: there is one process.
      size: how many they are.
      rank: which of them this one is.
      broken: whether an exchange has failed, so that none will succeed any more.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.size = 1 if group is None else dist.get_world_size(group)
        self.rank = 0 if group is None else dist.get_rank(group)
        self.broken = False
        self._told = list[BaseException]()

    @property
    def first(self) -> bool:
        """Whether this process writes what the run has once."""
        return self.rank == 0

    def numbers(self, *values: int) -> list[tuple[int, ...]]:
        """Up to three numbers of every process, in the order of the ranks. All have to ask.

        Raises:
          RankError: another process has failed, or does not answer.
        """
        if self.group is None:
            return [values]
        return [said[1 : 1 + len(values)] for said in self._numbers(0, *values)]

    def exchanged(self, value: Any) -> list[Any]:
        """What every process says, in the order of the ranks; JSON. All have to ask.

        Raises:
          RankError: as `numbers`.
        """
        if self.group is None:
            return [value]
        text = json.dumps(value).encode()
        sizes = [said[1] for said in self._numbers(0, len(text))]
        return [json.loads(said) for said in self._bytes(text, sizes)]

    def from_first(self, fn: Callable[[], T]) -> T | None:
        """What `fn` gives in the first process, which alone runs it; None in the others.

        Raises:
          RankError: in the others, if it failed in the first, where its own error is raised.
        """
        if self.group is None:
            return fn()
        if not self.first:
            self.numbers()
            return None
        try:
            result = fn()
        except Exception as error:
            self.fail(error)
            raise
        self.numbers()
        return result

    def shared(self, fn: Callable[[], Any]) -> Any:
        """What `fn` gives in the first process, told to all; JSON."""
        return self.exchanged(self.from_first(fn))[0]

    def broadcast(self, x: Tensor) -> None:
        """Overwrite a tensor of every process, wherever it is, by that of the first."""
        host = x.detach().cpu().contiguous()
        if self.group is not None and host.numel():
            dist.broadcast(host.reshape(-1).view(torch.uint8), group_src=0, group=self.group)
        with torch.no_grad():
            x.copy_(host)

    def gathered(self, content: bytes) -> list[bytes]:
        """The bytes of every process, in the order of the ranks. All have to ask."""
        if self.group is None:
            return [content]
        sizes = [said[1] for said in self._numbers(0, len(content))]
        return self._bytes(content, sizes)

    def fail(self, error: BaseException) -> None:
        """Tell the others of an error of this process, once. They raise it where they are."""
        if self.group is None or self.broken or any(error is told for told in self._told):
            return
        self._told.append(error)
        if isinstance(error, RankError):  # all know it
            return
        message = _message(error)
        with contextlib.suppress(RankError):
            self._bytes(message, _lengths(self._numbers(FAILED, len(message))))

    @contextlib.contextmanager
    def telling(self) -> Generator[None]:
        """Around what all processes do: an error of one is told to the others, before it leaves."""
        try:
            yield
        except Exception as error:
            self.fail(error)
            raise

    def explained(self, error: Exception) -> Exception:
        """The error of an exchange, or of the collectives of a step, as what is behind it.

        Where another process has failed meanwhile, its message; where one does not answer, its
        number. An error of this process alone is told to the others, and returned as it is.
        """
        if self.group is None or isinstance(error, RankError):
            return error
        self.broken = True
        try:
            return self._explained(error)
        except Exception:  # the store is gone, and with it the process that had it
            return RankError(f"the other processes do not answer any more ({_first_line(error)})")

    def _explained(self, error: Exception) -> Exception:
        store = _store()
        if not _of_a_collective(error):
            says_failed(store, self.rank, _message(error))
            return error
        return RankError(culprit(store, self.rank, self.size, _first_line(error)))

    def _numbers(self, *values: int) -> list[tuple[int, ...]]:
        """Four numbers of every process; raises what another one says that has failed."""
        mine = torch.zeros(4, dtype=torch.int64)
        mine[: len(values)] = torch.tensor(values)
        every = [torch.zeros(4, dtype=torch.int64) for _ in range(self.size)]
        self._all_gather(every, mine)
        said = [tuple(int(x) for x in numbers) for numbers in every]
        failed = [rank for rank, numbers in enumerate(said) if numbers[0] == FAILED]
        if failed and values[0] != FAILED:
            texts = self._bytes(b"", _lengths(said))
            told = "; ".join(
                f"rank {rank} failed: {texts[rank].decode(errors='replace')}" for rank in failed
            )
            self._told.append(RankError(told))
            raise self._told[-1]
        return said

    def _bytes(self, message: bytes, counts: Sequence[int]) -> list[bytes]:
        """The bytes of every process, whose numbers are known."""
        most = max(counts)
        if most == 0:
            return [b""] * self.size
        mine = torch.zeros(most, dtype=torch.uint8)
        if message:
            mine[: len(message)] = torch.frombuffer(bytearray(message), dtype=torch.uint8)
        every = [torch.zeros(most, dtype=torch.uint8) for _ in range(self.size)]
        self._all_gather(every, mine)
        return [x[:n].numpy().tobytes() for x, n in zip(every, counts, strict=True)]

    def _all_gather(self, every: list[Tensor], mine: Tensor) -> None:
        if self.broken:
            raise RankError("the processes do not hear each other any more")
        try:
            dist.all_gather(every, mine, group=self.group)
        except RuntimeError as error:
            raise self.explained(error) from error


ALONE = World()
"""One process."""


def _lengths(said: Sequence[tuple[int, ...]]) -> list[int]:
    """Of the messages of the processes that have failed."""
    return [numbers[1] if numbers[0] == FAILED else 0 for numbers in said]


def _store() -> Any:
    """Where processes leave messages outside of any collective."""
    find: Any = dist.distributed_c10d._get_default_store  # pyright: ignore[reportPrivateUsage]
    return find()


def _of_a_collective(error: BaseException) -> bool:
    """Whether an error says that another process is gone or late, as backends put it."""
    text = str(error)
    signs = ("gloo", "NCCL", "Connection", "Timed out", "timeout", "recvBytes", "peer")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)


def _message(error: BaseException) -> bytes:
    return f"{type(error).__name__}: {error}".encode()[:20_000]


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300]


_worlds: list[World] = []
"""The processes of the last mesh of this process, if it has one."""


def writes() -> bool:
    """Whether this process writes what is there once (an exported model, a page). Of the
    processes of a mesh that a step was made with, the first one does."""
    return not _worlds or _worlds[-1].first


_has_turn: ContextVar[bool] = ContextVar("has_turn", default=False)


@contextlib.contextmanager
def _turn() -> Generator[None]:
    token = _has_turn.set(True)
    try:
        yield
    finally:
        _has_turn.reset(token)


def has_turn() -> bool:
    """Whether this process works alone for now, while the others wait (`in_turn`)."""
    return _has_turn.get()


def in_turn(mesh: DeviceMesh, fn: Callable[[], T]) -> T:
    """What `fn` gives in every process, called in one after another, the first one first.

    For what the first process makes in a folder, and the others find there:

        texts = fkd.parallel.in_turn(mesh, lambda: tokenized(folder))

    A cache needs it not: `fkd.sources.cache` divides the work among the processes that call it.
    Called in turn, the first process makes all of it.

    Args:
      mesh: the processes; all of them ask.
      fn: without arguments.

    Raises:
      RankError: it failed in another process.
    """
    world = world_of(mesh)
    result: list[T] = []
    with world.telling():
        for rank in range(world.size):
            if rank == world.rank:
                with _turn():
                    result.append(fn())
            world.numbers()
    return result[0]


def world_of(mesh: DeviceMesh) -> World:
    """The processes of a mesh, with a group that works on the host."""
    ranks = ranks_in(mesh)
    everyone = dist.group.WORLD
    if everyone is not None and len(ranks) == dist.get_world_size() and _on_host(everyone):
        group = everyone
    else:
        group = _host_group(everyone, tuple(ranks))
    world = World(group)
    if world.size == dist.get_world_size() and can_start_again():
        world.numbers()
        world.from_first(lambda: forget_addresses(_store()))
    _worlds[:] = [world]
    return world


_host_groups: WeakKeyDictionary[Any, dict[tuple[int, ...], dist.ProcessGroup]]
_host_groups = WeakKeyDictionary()
"""By default group, the groups on the host that were made beside it: one for the same ranks."""


def _host_group(everyone: dist.ProcessGroup | None, ranks: tuple[int, ...]) -> dist.ProcessGroup:
    """A group of gloo; a second step over the same processes uses that of the first."""
    groups = _host_groups.setdefault(everyone, {})
    if ranks not in groups:
        groups[ranks] = cast(dist.ProcessGroup, dist.new_group(list(ranks), backend="gloo"))
    return groups[ranks]


def ranks_in(mesh: DeviceMesh) -> list[int]:
    """The ranks of the processes of a mesh."""
    return [int(rank) for rank in mesh.mesh.flatten().tolist()]


def _on_host(group: dist.ProcessGroup) -> bool:
    return "gloo" in str(dist.get_backend(group))
