"""A `DeviceMesh` as fkd reads it: which of its axes share what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.distributed.device_mesh import DeviceMesh

from ._ranks import Ranks
from ._shards import ranks_of

REPLICATE = ("replicate", "data", "dp", "ddp", "dp_replicate")
SHARD = ("shard", "fsdp", "dp_shard")
TENSOR = ("tensor", "tp")


@dataclass(frozen=True, eq=False)
class Axes:
    """The axes of a mesh by what its ranks share.

    Attributes:
      mesh: as it was given.
      data: the same without an axis whose ranks have the same examples.
      ranks: all ranks among which the examples of a batch are divided.
      shard: the number of the axis of `data` along which parameters are cut; None: they are not.
    """

    mesh: DeviceMesh
    data: DeviceMesh
    ranks: Ranks
    shard: int | None = None


def axes_of(mesh: DeviceMesh) -> Axes:
    """What the axes of a mesh mean, by their names.

    `"replicate"` (also `"data"`, `"dp"`, `"ddp"`, `"dp_replicate"`; and the one axis of a mesh
    without names): its ranks hold the same parameters. `"shard"` (also `"fsdp"`, `"dp_shard"`):
    each of its ranks holds a part of every large parameter. All of them divide each batch.
    `"tensor"` (also `"tp"`): its ranks compute the same examples, with a teacher whose layers its
    own plan has cut over them.

    Raises:
      ValueError: an axis has another name, or there is more than one of a kind.
    """
    names = mesh.mesh_dim_names
    if names is None and mesh.ndim == 1:
        names = ("replicate",)
    if names is None:
        raise ValueError(
            f"train_step: the mesh has {mesh.ndim} axes without names, so that their meaning is "
            'not known. Name them: init_device_mesh(..., mesh_dim_names=("replicate", "shard")).'
        )
    kinds = [_kind(name) for name in names]
    twice = [kind for kind in dict.fromkeys(kinds) if kinds.count(kind) > 1]
    if twice:
        raise ValueError(
            f"train_step: the mesh has several axes that mean {twice[0]!r}: {', '.join(names)}. "
            "One of each is expected."
        )
    data = _data(mesh, names, kinds)
    kinds = [kind for kind in kinds if kind != "tensor"]
    cut = kinds.index("shard") if "shard" in kinds and data.size(kinds.index("shard")) > 1 else None
    return Axes(mesh, data, _ranks(data), cut)


def _data(mesh: DeviceMesh, names: Sequence[str], kinds: Sequence[str]) -> DeviceMesh:
    """The axes over which a batch is divided; of none, one of this rank alone."""
    if "tensor" not in kinds:
        return mesh
    left = tuple(name for name, kind in zip(names, kinds, strict=True) if kind != "tensor")
    if left:
        return mesh[left]
    alone = DeviceMesh(mesh.device_type, mesh.mesh[None], mesh_dim_names=("replicate", *names))
    return alone["replicate"]


def _kind(name: str) -> str:
    if name in REPLICATE:
        return "replicate"
    if name in SHARD:
        return "shard"
    if name in TENSOR:
        return "tensor"
    raise ValueError(
        f"train_step: the mesh has an axis {name!r}; {', '.join(map(repr, REPLICATE))} (ranks that "
        f"hold the same parameters), {', '.join(map(repr, SHARD))} (ranks that hold a part of "
        f"each) or {', '.join(map(repr, TENSOR))} (ranks that compute the same examples, with a "
        "teacher that is cut over them) is expected."
    )


def _ranks(mesh: DeviceMesh) -> Ranks:
    """All ranks of a mesh as one group."""
    if mesh.ndim == 1:
        group = mesh.get_group()
    else:
        group = mesh._flatten().get_group()  # pyright: ignore[reportPrivateUsage]
    return ranks_of(group)
