"""A state whose large tensors are DTensors: every rank holds some rows of each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.utils.weak import WeakIdKeyDictionary

from fkd._objective.objective import Objective

from ._layout import Layout, reading
from ._ranks import Ranks

SMALLEST = 1024
"""Tensors with fewer numbers stay whole on every rank."""

_known: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""The cutting and the layout of every tensor that was cut here, and not by a model's own
`parallelize_module`."""

Layouts = Mapping[str, Mapping[str, Layout]]
"""`{model: {parameter: layout}}` of those that are cut."""


@dataclass(frozen=True, eq=False)
class Cutting:
    """How the parameters of a run are cut.

    Attributes:
      mesh: of all axes.
      axis: the number of the axis along which they are cut.
      layouts: of what is cut.
    """

    mesh: DeviceMesh
    axis: int
    layouts: Layouts

    @property
    def copies(self) -> Ranks | None:
        """The ranks that hold the same rows, if there are several."""
        others = [i for i in range(self.mesh.ndim) if i != self.axis]
        if not others or math.prod(self.mesh.size(i) for i in others) == 1:
            return None
        return ranks_of(self.mesh.get_group(others[0]))

    @property
    def parts(self) -> Ranks:
        """The ranks that hold the parts of a whole."""
        return ranks_of(self.mesh.get_group(self.axis))

    @property
    def part(self) -> int:
        """Which rows this rank holds, from 0."""
        return self.mesh.get_local_rank(self.axis)

    def skeleton(self, name: str, copied: nn.Module) -> nn.Module:
        """A skeleton that gathers what it reads."""
        return reading(copied, self.layouts.get(name, {}))

    def parameter(self, name: str, parameter: str, tensor: Tensor) -> Tensor:
        """A whole parameter, for a ref to it."""
        layout = self.layouts.get(name, {}).get(parameter)
        return tensor if layout is None else layout.gather(tensor)

    def cut(self, tree: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """Whole tensors as DTensors of which this rank has its rows."""
        return {
            m: {n: self._cut(x, self.layouts.get(m, {}).get(n)) for n, x in tensors.items()}
            for m, tensors in tree.items()
        }

    def _cut(self, x: Tensor, layout: Layout | None) -> Tensor:
        if layout is None or is_cut(x):
            return x
        return self.part_of(layout, layout.cut(x))

    def part_of(self, layout: Layout, rows: Tensor) -> Tensor:
        """The rows of this rank as a part of a whole, which `is_cut` knows."""
        cut = self.as_dtensor(rows, layout)
        _known[cut] = self, layout
        return cut

    def as_dtensor(self, rows: Tensor, layout: Layout) -> DTensor:
        """The rows of this rank as a part of a whole."""
        places = [Shard(0) if i == self.axis else Replicate() for i in range(self.mesh.ndim)]
        shape = torch.Size(layout.shape)
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(
            rows, self.mesh, places, run_check=False, shape=shape, stride=stride
        )


def ranks_of(group: dist.ProcessGroup) -> Ranks:
    """A process group as plain data."""
    return Ranks(group.group_name, dist.get_world_size(group), dist.get_rank(group))


def cutting(
    objective: Objective, mesh: DeviceMesh, axis: int, dtype: torch.dtype | None
) -> Cutting:
    """What of an objective's models is cut: matrices and vectors of at least `SMALLEST` numbers.

    Not cut are those of recurrent modules, which hold their weights in lists, and tensors of
    other classes than torch's own (8-bit weights).

    Args:
      objective: whose models.
      mesh: the processes.
      axis: the number of the axis along which parameters are cut.
      dtype: in which matrices are sent; None: their own.
    """
    group = ranks_of(mesh.get_group(axis))
    layouts: dict[str, dict[str, Layout]] = {}
    for name in objective.models:
        module = objective.program.model(name).module
        assert module is not None
        for n, p in _to_cut(module).items():
            sent = dtype if p.ndim >= 2 and p.dtype is torch.float32 else None
            one = Layout(tuple(p.shape), group.group, group.size, group.rank, sent)
            layouts.setdefault(name, {})[n] = one
    return Cutting(mesh, axis, layouts)


def _to_cut(module: nn.Module) -> dict[str, Tensor]:
    recurrent = {
        id(p) for m in module.modules() if isinstance(m, nn.RNNBase) for p in m.parameters()
    }
    return {
        n: p
        for n, p in module.named_parameters()
        if type(p) in (nn.Parameter, Tensor)
        and p.is_floating_point()
        and p.ndim
        and p.numel() >= SMALLEST
        and id(p) not in recurrent
    }


def local(x: Any) -> Any:
    """The rows of this rank of a tensor that is cut; anything else as it is."""
    return x._local_tensor if is_cut(x) else x  # pyright: ignore[reportPrivateUsage]


def locals_of(tree: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """A tree of tensors, of those that are cut the rows of this rank."""
    return {m: {n: local(x) for n, x in tensors.items()} for m, tensors in tree.items()}


def is_cut(x: Any) -> bool:
    """Whether this rank holds some rows of a tensor, as `cutting` cuts."""
    return isinstance(x, DTensor) and x in _known


def is_foreign(x: Any) -> bool:
    """Whether a tensor is cut in another way: by a model's own plan (tensor parallel)."""
    return isinstance(x, DTensor) and x not in _known


def has_foreign(*trees: Mapping[str, Mapping[str, Tensor]]) -> bool:
    """Whether a model computes over several ranks by a plan of its own, so that all of them have
    to call it with the same examples."""
    return any(is_foreign(x) for tree in trees for named in tree.values() for x in named.values())


def everywhere(x: Tensor) -> Tensor:
    """The whole tensor of one that is cut in any way; all ranks have to ask."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def cutting_of(*trees: Mapping[str, Mapping[str, Tensor]]) -> Cutting | None:
    """How the tensors of a state are cut; None if they are not."""
    for tree in trees:
        for tensors in tree.values():
            for x in tensors.values():
                if is_cut(x):
                    return _known[x][0]
    return None


def whole(x: Any, like: Any = None) -> Any:
    """The whole tensor of one that is cut, on the CPU; all ranks have to ask.

    Args:
      x: a tensor, or rows that belong to a parameter (the moments of an optimizer).
      like: that parameter.
    """
    if is_cut(x):
        return x.full_tensor().cpu()
    joined = x if like is None else moments_like(x, like)
    return joined.full_tensor().cpu() if is_cut(joined) else x


class Wholes(Mapping[str, Tensor]):
    """Tensors by name, where those that are cut are gathered when they are asked for; all ranks
    have to ask alike."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        x = self._tensors[name]
        return x.full_tensor() if isinstance(x, DTensor) and is_cut(x) else x

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def cut_like(x: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, cut as a parameter is (which has its shape)."""
    return x if is_cut(x) else cut_of(cast(Layout, _known[like][1]).cut(x), like)


def cut_of(rows: Tensor, like: Tensor) -> Tensor:
    """The rows of this rank, as a part of a whole that is cut as a parameter is."""
    cutting, layout = _known[like]
    return cast(Cutting, cutting).part_of(layout, rows.to(local(like).device))


def rows_like(x: Tensor, like: Tensor) -> Tensor:
    """The rows of this rank of a whole tensor that belongs to a parameter."""
    rows: Tensor = local(like)
    if is_cut(x):
        return local(x)
    if tuple(x.shape) != tuple(like.shape):
        return x
    return cast(Layout, _known[like][1]).cut(x).to(rows.device)


def rows_of(like: Tensor) -> slice:
    """Which rows of a tensor that is cut this rank has."""
    return cast(Layout, _known[like][1]).part


def rows_by_part(like: Tensor) -> list[int]:
    """How many rows of a tensor that is cut each part has."""
    layout: Layout = _known[like][1]
    parts = [replace(layout, rank=rank).part for rank in range(layout.size)]
    return [part.stop - part.start for part in parts]


def moments_like(x: Any, like: Tensor) -> Any:
    """What an optimizer remembers of a parameter, as a part of a whole where it is."""
    if is_cut(like) and isinstance(x, Tensor) and x.ndim and x.shape == local(like).shape:
        return cut_of(x, like)
    return x
