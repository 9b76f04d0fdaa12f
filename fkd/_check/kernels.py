"""What fake tensors let through and real ones do not: dtypes that a kernel does not take."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

ATEN = torch.ops.aten
_PRODUCTS: dict[Any, tuple[int, ...]] = {
    ATEN.mm: (0, 1),
    ATEN.bmm: (0, 1),
    ATEN.linear: (0, 1, 2),
    ATEN.convolution: (0, 1),
    ATEN.addmm: (0, 1, 2),
    ATEN.baddbmm: (0, 1, 2),
}
"""The places of the factors, and of what is added, among the arguments of a product."""

_NORMS: dict[Any, tuple[int, ...]] = {
    ATEN.native_batch_norm: (1, 2, 3, 4),
    ATEN.native_layer_norm: (2, 3),
    ATEN.native_group_norm: (1, 2),
}
"""The places of scale, shift and statistics among the arguments of a normalisation."""

_NOT_OF_FLOATS = re.compile(r"bitwise_|__(and|or|xor|lshift|rshift)__|index_|take$|gather$")
"""Operations that have no kernel for floating-point numbers, or for such indices."""

_LARGEST = 2**20
"""Numbers in the tensors of an operation that is tried, at most: it is to cost nothing."""

_OF_DTYPES = re.compile(
    r"dtype|scalar type|data type|not implemented for '|floating.point|can't be cast|bool input"
    r"|should be the same|[Tt]ype promot|used as indices|predicate to be bool"
)


class Kernels(TorchDispatchMode):
    """Refuses the dtypes that the kernels refuse.

    Products and normalisations by their rule, whatever their size. Any other operation on
    something else than float32, or that is none for floating-point numbers, is tried once for each
    combination of dtypes, on zeros, if it is small.
    """

    def __init__(self) -> None:
        super().__init__()
        self._tried: set[Hashable] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket in _PRODUCTS:
            _expect_same(*(args[i] for i in _PRODUCTS[func.overloadpacket] if i < len(args)))
        elif func.overloadpacket in _NORMS:
            _expect_norm(args[0], [args[i] for i in _NORMS[func.overloadpacket]])
        else:
            self._expect_kernel(func, args, kwargs)
        return func(*args, **kwargs)

    def _expect_kernel(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Refuse an operation that has no kernel for these dtypes."""
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        dtypes = tuple((x.dtype, x.device.type) for x in tensors)
        if (func, dtypes) in self._tried or not _can_be_tried(func, tensors):
            return
        self._tried.add((func, dtypes))
        # What draws random numbers draws them as if it had not been tried.
        drawn = torch.Tag.nondeterministic_seeded in func.tags
        as_before = torch.random.fork_rng(devices=[], enabled=drawn)
        with unset_fake_temporarily(), torch.no_grad(), as_before:
            real_args, real_kwargs = tree_map_only(Tensor, _zeros, (tuple(args), kwargs))
            try:
                func(*real_args, **real_kwargs)
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                said = str(error).split("\n")[0]
                if is_of_dtypes(error):
                    raise RuntimeError(f"{func.overloadpacket.__name__}: {said}") from None


def _can_be_tried(func: Any, tensors: Sequence[Tensor]) -> bool:
    """Whether an operation depends on dtypes, and shows it on small zeros without a trace."""
    if func.namespace != "aten":
        return False
    drawn = torch.Tag.nondeterministic_seeded in func.tags
    if drawn and any(x.device.type != "cpu" for x in tensors):
        return False
    if "backward" in func.name():  # of what a fake forward pass stored, in dtypes of its own
        return False
    plain = all(x.layout is torch.strided and x.device.type != "meta" for x in tensors)
    others = any(x.dtype is not torch.float32 for x in tensors)
    others = others or _NOT_OF_FLOATS.match(func.overloadpacket.__name__) is not None
    return others and plain and sum(x.numel() for x in tensors) <= _LARGEST


def _zeros(x: Tensor) -> Tensor:
    """Zeros with the shape, the strides and the dtype of a tensor."""
    if math.prod(x.shape) and any(stride < 0 for stride in x.stride()):
        return torch.zeros(x.shape, dtype=x.dtype, device=x.device)
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).zero_()


def _expect_same(*operands: Any) -> None:
    dtypes = [x.dtype for x in operands if isinstance(x, Tensor)]
    if len(set(dtypes)) > 1:
        raise RuntimeError(
            "the factors of a product and what is added to it must have the same dtype, and have "
            f"{' and '.join(map(name_of_dtype, dtypes))}"
        )
    if torch.bool in dtypes:
        raise RuntimeError("a product is not implemented for 'Bool'; convert the factors")


def _expect_norm(x: Tensor, parameters: Sequence[Any]) -> None:
    """Half precision is normalised by its own dtype or by float32, any other by its own."""
    dtypes = {p.dtype for p in parameters if isinstance(p, Tensor)}
    half = x.dtype in (torch.bfloat16, torch.float16)
    if dtypes - {x.dtype} and not (half and dtypes == {torch.float32}):
        raise RuntimeError(
            f"a normalisation of {name_of_dtype(x.dtype)} must have parameters and statistics of "
            f"the same dtype, and has {', '.join(sorted(map(name_of_dtype, dtypes)))}"
        )


def is_of_dtypes(error: Exception) -> bool:
    """Whether an operation failed for the dtype of what it was given, by torch's words."""
    return bool(_OF_DTYPES.search(str(error)))


def name_of_dtype(dtype: torch.dtype) -> str:
    """`bfloat16` for `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")
