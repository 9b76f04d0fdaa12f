"""A `DeviceMesh` as fkd reads it: which of its axes share what."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from ._ranks import Ranks

REPLICATE = ("replicate", "data", "dp", "ddp", "dp_replicate")
SHARD = ("shard", "fsdp", "dp_shard")


@dataclass(frozen=True, eq=False)
class Axes:
    """The axes of a mesh by what its ranks share.

    Attributes:
      mesh: as it was given.
      ranks: all ranks among which the examples of a batch are divided.
      shard: the name (or number) of the axis along which parameters are cut; None: they are not.
    """

    mesh: DeviceMesh
    ranks: Ranks
    shard: str | int | None = None


def axes_of(mesh: DeviceMesh) -> Axes:
    """What the axes of a mesh mean, by their names.

    `"replicate"` (also `"data"`, `"dp"`, `"ddp"`, `"dp_replicate"`; and the one axis of a mesh
    without names): its ranks hold the same parameters, and divide the examples of each batch.

    Raises:
      ValueError: an axis has another name, or there is more than one of a kind.
    """
    names = mesh.mesh_dim_names
    if names is None:
        if mesh.ndim != 1:
            raise ValueError(
                f"train_step: the mesh has {mesh.ndim} axes without names, so that their meaning "
                'is not known. Name them: init_device_mesh(..., mesh_dim_names=("replicate", '
                '"shard")).'
            )
        names = ("replicate",)
    unknown = [name for name in names if name not in REPLICATE]
    if unknown:
        raise ValueError(
            f"train_step: the mesh has an axis {unknown[0]!r}; {', '.join(map(repr, REPLICATE))} "
            "(ranks that hold the same parameters and divide the batch) is expected."
        )
    return Axes(mesh, _ranks(mesh))


def _ranks(mesh: DeviceMesh) -> Ranks:
    """All ranks of a mesh as one group."""
    if mesh.ndim == 1:
        group = mesh.get_group()
    else:
        group = mesh._flatten().get_group()  # pyright: ignore[reportPrivateUsage]
    return Ranks(group.group_name, dist.get_world_size(group), dist.get_rank(group))
