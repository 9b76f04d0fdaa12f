"""The precisions in which models run, by the names that users give them."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch

from fkd._base.errors import listing

Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]

_DTYPES: dict[str, torch.dtype | None] = {
    "fp32": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def autocast_dtype(function: str, precision: str) -> torch.dtype | None:
    """The dtype in which matrix products run; None: that of the tensors.

    Args:
      function: whose argument it is, for the message.
      precision: the name.

    Raises:
      ValueError: there is no such precision.
    """
    if precision not in _DTYPES:
        raise ValueError(
            f"{function}: precision is {precision!r}; one of {listing(map(repr, _DTYPES))} is "
            "expected."
        )
    return _DTYPES[precision]
