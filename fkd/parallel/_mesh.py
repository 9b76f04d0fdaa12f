"""A `DeviceMesh` as fkd reads it: which of its axes share what."""

from __future__ import annotations

from dataclasses import dataclass

from torch.distributed.device_mesh import DeviceMesh

from ._ranks import Ranks
from ._shards import ranks_of

REPLICATE = ("replicate", "data", "dp", "ddp", "dp_replicate")
SHARD = ("shard", "fsdp", "dp_shard")


@dataclass(frozen=True, eq=False)
class Axes:
    """The axes of a mesh by what its ranks share.

    Attributes:
      mesh: as it was given.
      ranks: all ranks among which the examples of a batch are divided.
      shard: the number of the axis along which parameters are cut; None: they are not.
    """

    mesh: DeviceMesh
    ranks: Ranks
    shard: int | None = None


def axes_of(mesh: DeviceMesh) -> Axes:
    """What the axes of a mesh mean, by their names.

    `"replicate"` (also `"data"`, `"dp"`, `"ddp"`, `"dp_replicate"`; and the one axis of a mesh
    without names): its ranks hold the same parameters. `"shard"` (also `"fsdp"`, `"dp_shard"`):
    each of its ranks holds a part of every large parameter. All of them divide each batch.

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
    cut = kinds.index("shard") if "shard" in kinds and mesh.size(kinds.index("shard")) > 1 else None
    return Axes(mesh, _ranks(mesh), cut)


def _kind(name: str) -> str:
    if name in REPLICATE:
        return "replicate"
    if name in SHARD:
        return "shard"
    raise ValueError(
        f"train_step: the mesh has an axis {name!r}; {', '.join(map(repr, REPLICATE))} (ranks that "
        f"hold the same parameters) or {', '.join(map(repr, SHARD))} (ranks that hold a part of "
        "each) is expected."
    )


def _ranks(mesh: DeviceMesh) -> Ranks:
    """All ranks of a mesh as one group."""
    if mesh.ndim == 1:
        group = mesh.get_group()
    else:
        group = mesh._flatten().get_group()  # pyright: ignore[reportPrivateUsage]
    return ranks_of(group)
