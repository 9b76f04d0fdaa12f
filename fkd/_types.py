"""Aliases shared by the core. Trees are nested dicts of tensors, keyed by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor

Params: TypeAlias = Mapping[str, Mapping[str, Tensor]]
"""`{model name: {parameter name: tensor}}`; buffers have the same form."""

Batch: TypeAlias = Any
"""Whatever the data loader yields: a mapping, a tuple, a tensor, or any nesting of them."""

Loss: TypeAlias = Callable[..., Any]
"""`loss(student_x, teacher_x, *, knobs, where=None)` -> values, `Mean`, or (values, state)."""

Scalars: TypeAlias = Mapping[str, Tensor]
"""`{knob name: 0-d tensor}`: the weights, temperatures and decays that move during a run."""
