"""Arguments and results as a structure and a list of tensors, in Python that Dynamo traces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_TENSOR, _TUPLE, _LIST, _DICT, _CONSTANT = "tensor", "tuple", "list", "dict", "constant"

PLAIN = (Tensor, nn.Parameter)
"""Tensors that are what they seem: quantised and distributed ones are classes of their own."""


def flattened(value: Any, tensors: list[Tensor], *, fake: bool = False) -> Any:
    """The structure of a value, with a place in a list for each of its tensors.

    Args:
      value: tensors and constants in tuples, lists and dicts of strings.
      tensors: is added to.
      fake: whether they are the fake tensors of a trace.

    Returns:
      Nested tuples of constants; None if the value holds anything else.
    """
    if isinstance(value, Tensor) and (fake or type(value) in PLAIN):
        tensors.append(value)
        return (_TENSOR, len(tensors) - 1)
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype)):
        return (_CONSTANT, value)
    if type(value) is tuple or type(value) is list:
        parts = [flattened(x, tensors, fake=fake) for x in value]
        if any(part is None for part in parts):
            return None
        return (_TUPLE if type(value) is tuple else _LIST, tuple(parts))
    if type(value) is dict:
        pairs = [(k, flattened(x, tensors, fake=fake)) for k, x in value.items()]
        if any(part is None or not isinstance(k, str) for k, part in pairs):
            return None
        return (_DICT, tuple(pairs))
    return None


def rebuilt(structure: Any, tensors: Sequence[Tensor]) -> Any:
    """The value of a structure, with other tensors."""
    kind, what = structure
    if kind == _TENSOR:
        return tensors[what]
    if kind == _TUPLE:
        return tuple([rebuilt(x, tensors) for x in what])
    if kind == _LIST:
        return [rebuilt(x, tensors) for x in what]
    if kind == _DICT:
        return {k: rebuilt(x, tensors) for k, x in what}
    return what
