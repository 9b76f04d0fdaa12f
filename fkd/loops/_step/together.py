"""What is done to all gradients at once, as operations that a compiler does not look into.

As a part of the graph, the norm of each gradient is a kernel of its own, and so is its product
with the factor of a clip: there are as many to compile as there are parameters. A graph whose
equal blocks are compiled once calls these instead, so that depth does not bring them back.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.library import Library

_LIBRARY = Library("fkd", "FRAGMENT")
_LIBRARY.define("norm_of_all(Tensor[] tensors, bool wide) -> Tensor")
_LIBRARY.define("scaled_all(Tensor[] tensors, Tensor factor) -> Tensor[]")


def norm_of_all(tensors: Sequence[Tensor], *, wide: bool) -> Tensor:
    """`[]`, the norm over some tensors, in float32.

    Args:
      wide: finite up to 1e38. Otherwise infinite where the sum of the squares is.
    """
    return torch.ops.fkd.norm_of_all(list(tensors), wide)


def scaled_all(tensors: Sequence[Tensor], factor: Tensor) -> list[Tensor]:
    """Each of some tensors times a factor, `[]`."""
    return torch.ops.fkd.scaled_all(list(tensors), factor)


def _norm(tensors: Sequence[Tensor], wide: bool) -> Tensor:
    if wide:
        norms = [torch.linalg.vector_norm(x, dtype=torch.float64) for x in tensors]
        return torch.linalg.vector_norm(torch.stack(norms)).float()
    norms = torch._foreach_norm([x.float() for x in tensors])  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    return torch.stack(norms).square().sum().sqrt()


def _scaled(tensors: Sequence[Tensor], factor: Tensor) -> list[Tensor]:
    return [x * factor for x in tensors]


def _like_norm(tensors: Sequence[Tensor], wide: bool) -> Tensor:
    return tensors[0].new_empty((), dtype=torch.float32)


for _name, _fn, _fake in (
    ("norm_of_all", _norm, _like_norm),
    ("scaled_all", _scaled, _scaled),
):
    _LIBRARY.impl(_name, _fn, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fkd::{_name}", _fake, lib=_LIBRARY)
