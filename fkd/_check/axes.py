"""Which axis of a tensor holds the features, as the operations that made it say.

Shapes do not tell `[batch, classes, height, width]` from `[batch, height, width, classes]`. A
convolution puts the features second, a linear layer last, and elementwise operations leave them
where they are: the graph of the backward pass has the names of all of them.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any, Literal

import torch

from .._objective.terms import Term
from .._refs.paths import name_of

Axis = Literal["second", "last"]

_SECOND = re.compile(
    r"(Convolution|BatchNorm|GroupNorm|(Max|Avg)Pool[123]D|Upsample|GridSampler|PixelShuffle)"
)
_LAST = re.compile(r"LayerNorm|RMSNorm|^LinearBackward")
_SAME = re.compile(
    r"^(Add|Sub|Mul|Div|Relu|Gelu|Silu|Sigmoid|Tanh|Elu|Hardtanh|Hardswish|LeakyRelu|Clone|ToCopy"
    r"|Alias|Slice|Cat|NativeDropout|Clamp)Backward\d+$"
)
_PRODUCT = re.compile(r"^(Addmm|Mm)Backward")
_MOST = 50
"""Operations that are looked at."""

ANYWHERE = frozenset({"mse", "l1", "smooth_l1", "logit_mse", "binary_kl", "binary_cross_entropy"})
"""Losses that compare number by number: their mean is the same wherever the features are."""


def axis_problem(term: Term, values: Sequence[Any]) -> str | None:
    """What is wrong with a loss of fkd whose features stand on another axis than it expects.

    Args:
      term: whose loss it is.
      values: its arguments, computed with a graph of the backward pass.
    """
    wanted = _expected(term)
    for ref, x, axis in zip(term.args, values, wanted, strict=False):
        if axis is None or not isinstance(x, torch.Tensor) or x.ndim < 3:
            continue
        if {axis, features_of(x)} != {"second", "last"}:
            continue
        layout = "[batch, *space, features]" if axis == "last" else "[batch, features, *space]"
        source, target = (1, -1) if axis == "last" else (-1, 1)
        here = "second" if axis == "last" else "last"
        return (
            f"{name_of(term.loss)}: {ref!r} {tuple(x.shape)} has its features (classes) on its "
            f"{here} axis, as the layer says that made it; {layout} is expected. Move them, of "
            f"every input: {ref!r}.movedim({source}, {target})."
        )
    return None


def features_of(x: torch.Tensor) -> Axis | None:
    """The axis on which a tensor of three or more axes has its features, if its graph says so."""
    places = _places(x.grad_fn, x.ndim, [_MOST])
    if places == {1}:
        return "second"
    return "last" if places == {x.ndim - 1} else None


def _places(fn: Any, ndim: int, left: list[int]) -> set[int | None]:
    """The axis of the features of what an operation made, by every way that leads to a layer.

    Args:
      fn: of the graph.
      ndim: axes of what it made.
      left: how many operations may still be looked at.
    """
    left[0] -= 1
    if fn is None or left[0] < 0:
        return {None}
    name, inputs = str(fn.name()), [parent for parent, _ in fn.next_functions]
    if _SECOND.search(name):
        return {1}
    if _LAST.search(name) or _is_linear(name, inputs):
        return {ndim - 1}
    if _SAME.match(name):
        inner = [i for i in inputs if i is not None and "AccumulateGrad" not in i.name()]
        return {place for i in inner for place in _places(i, ndim, left)} or {None}
    moved = _order(fn, name, ndim)
    if moved is None:
        return {None}
    return {p if p is None else moved.index(p) for p in _places(inputs[0], ndim, left)}


def _order(fn: Any, name: str, ndim: int) -> list[int] | None:
    """Which axis stands at each place after axes were moved; None if they were not."""
    if name.startswith("PermuteBackward"):
        order = [_signed(d) % ndim for d in fn._saved_dims]
        return order if len(order) == ndim else None
    if name.startswith("TransposeBackward"):
        a, b = (_signed(d) % ndim for d in (fn._saved_dim0, fn._saved_dim1))
        order = list(range(ndim))
        order[a], order[b] = b, a
        return order
    return None


def _signed(axis: int) -> int:
    """Saved axes are unsigned."""
    return axis - 2**64 if axis >= 2**63 else axis


def _is_linear(name: str, inputs: Sequence[Any]) -> bool:
    """Rows that were multiplied and put back into their axes: a linear layer."""
    made_by = [i for i in inputs if i is not None]
    view = re.match(r"^(Unsafe)?ViewBackward|^ReshapeAliasBackward", name)
    return bool(view) and len(made_by) == 1 and bool(_PRODUCT.match(made_by[0].name()))


def _expected(term: Term) -> list[Axis | None]:
    """Where a loss of fkd expects the features of each argument; None where that is open."""
    loss: Any = getattr(term.loss, "func", term.loss)
    module = str(getattr(loss, "__module__", ""))
    if not module.startswith("fkd.losses") or name_of(loss) in ANYWHERE:
        return []
    try:
        parameters = inspect.signature(loss).parameters.values()
    except (TypeError, ValueError):
        return []
    return [_axis_of(str(p.annotation)) for p in parameters if p.default is p.empty]


def _axis_of(annotation: str) -> Axis | None:
    """From `Float[Tensor, '*batch vocab']`, or `Float[Tensor, 'batch channels *space']`."""
    shape = re.search(r"['\"]([^'\"]*)['\"]\]*", annotation)
    axes = shape[1].split() if shape and annotation.startswith("Float") else []
    if len(axes) >= 2 and axes[0] == "*batch" and "*" not in axes[-1]:
        return "last"
    if len(axes) == 3 and axes[0] == "batch" and axes[2].endswith("space"):
        return "second"
    return None
