"""Aliases shared by the core. Trees are nested dicts of tensors, keyed by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor

from .sparse import SparseDistribution

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Number: TypeAlias = complex  # to a type checker, every number of Python is one
    Whole: TypeAlias = Tensor | SparseDistribution
    Leaf: TypeAlias = Whole | npt.NDArray[np.generic] | np.generic | Number | str | bytes | None
    Batch: TypeAlias = Leaf | Mapping[str, "Batch"] | Sequence["Batch"]
    TensorBatch: TypeAlias = Whole | Mapping[str, "TensorBatch"] | Sequence["TensorBatch"] | None
else:  # checks at run time do not follow a type into itself
    Batch = TensorBatch = object

__all__ = ["Batch", "Loss", "Params", "Scalars", "TensorBatch"]
"""`Batch`: what a loader yields: tensors, arrays, numbers and text in any nesting of mappings,
tuples and lists.

`TensorBatch`: a batch at the inside of the edge (`fkd.loops._data.batch.normalised`): tensors in
any nesting of dicts, tuples and lists, with None in a tuple or list for what is not a tensor."""

Params: TypeAlias = Mapping[str, Mapping[str, Tensor]]
"""`{model name: {parameter name: tensor}}`; buffers have the same form."""

Loss: TypeAlias = Callable[..., Any]
"""`loss(student_x, teacher_x, *, knobs, where=None)` -> values, `Mean`, or (values, state)."""

Scalars: TypeAlias = Mapping[str, Tensor]
"""`{knob name: 0-d tensor}`: the weights, temperatures and decays that move during a run."""
