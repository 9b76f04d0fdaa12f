"""Trees on their way from one process to others: JSON and raw numbers, never a pickle."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fkd.parallel._world import World

from .tensors import describe
from .tree import DTYPES, Tree, decode, encode


def tree_of_first(world: World, make: Callable[[], Tree]) -> Tree:
    """A tree that the first process makes, in all of them, on the CPU.

    Args:
      world: the processes; all of them ask.
      make: called in the first one alone.
    """
    if world.size == 1:
        return make()
    data, tensors = encode(world.from_first(make))
    about = {name: describe(x) for name, x in tensors.items()}
    said = world.exchanged({"data": data, "tensors": about} if world.first else None)[0]
    if not world.first:
        tensors = {name: _empty(one) for name, one in said["tensors"].items()}
    for x in tensors.values():
        world.broadcast(x)
    return decode(said["data"], tensors)


def packed(tree: Tree) -> bytes:
    """A tree as bytes."""
    data, tensors = encode(tree)
    about = {name: describe(x) for name, x in tensors.items()}
    head = json.dumps({"data": data, "tensors": about}).encode()
    raw = [x.cpu().contiguous().reshape(-1).view(torch.uint8) for x in tensors.values()]
    body = b"".join(x.numpy().tobytes() for x in raw)
    return len(head).to_bytes(8, "little") + head + body


def unpacked(content: bytes) -> Tree:
    """The tree that was packed."""
    end = 8 + int.from_bytes(content[:8], "little")
    said = json.loads(content[8:end])
    tensors: dict[str, Tensor] = {}
    for name, about in said["tensors"].items():
        dtype = DTYPES[about["dtype"]]
        size = math.prod(about["shape"]) * dtype.itemsize
        part = bytearray(content[end : end + size])
        flat = torch.frombuffer(part, dtype=torch.uint8) if part else torch.zeros(0).byte()
        tensors[name] = flat.view(dtype).reshape(about["shape"])
        end += size
    return decode(said["data"], tensors)


def _empty(about: dict[str, Any]) -> Tensor:
    dtype, shape = DTYPES[about["dtype"]], about["shape"]
    if "stride" in about:
        return torch.empty_strided(shape, about["stride"], dtype=dtype)
    return torch.empty(shape, dtype=dtype)
