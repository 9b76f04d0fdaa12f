"""Parameters of which every rank holds some rows: gathered where a module reads them.

A skeleton whose parameters are cut reads each of them through a property, which gathers the rows
of all ranks (all-gather) at that moment. The backward pass sums the gradient over the ranks and
keeps the own rows (reduce-scatter); it gathers again what it needs. So a block is whole only while
it computes.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from ._ranks import gathered_plainly, scattered


@dataclass(frozen=True)
class Layout:
    """How a tensor is cut along its first axis, as `torch.chunk` cuts. Plain data.

    Attributes:
      shape: of the whole tensor.
      group: name of the process group whose ranks hold the rows.
      size, rank: of the group.
      dtype: in which it is sent and read; None: its own. Gradients are summed in its own.
    """

    shape: tuple[int, ...]
    group: str
    size: int
    rank: int
    dtype: torch.dtype | None = None

    @property
    def rows(self) -> int:
        """How many rows each of the first ranks has."""
        return -(-self.shape[0] // self.size)

    @property
    def part(self) -> slice:
        """The rows of this rank."""
        n = self.shape[0]
        return slice(min(self.rank * self.rows, n), min((self.rank + 1) * self.rows, n))

    def cut(self, whole: Tensor) -> Tensor:
        """The own rows of a tensor, in memory of their own."""
        return whole[self.part].clone()

    def gather(self, local: Tensor) -> Tensor:
        """The whole tensor. Differentiable."""
        if local.requires_grad and torch.is_grad_enabled():
            return cast(Tensor, _Whole.apply(local, self))
        return self.gathered(local)

    def gathered(self, local: Tensor) -> Tensor:
        """The whole tensor, without a gradient."""
        x = local if self.dtype is None else local.to(self.dtype)
        missing = self.rows - x.shape[0]
        if missing:
            x = torch.cat([x, x.new_zeros(missing, *x.shape[1:])])
        whole = gathered_plainly(x, self.size, self.group)
        return whole if whole.shape[0] == self.shape[0] else whole[: self.shape[0]].contiguous()


class _Whole(torch.autograd.Function):
    """All-gather of rows, whose backward pass is a reduce-scatter in the dtype of the rows."""

    @staticmethod
    def forward(local: Tensor, layout: Layout) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return layout.gathered(local)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        local, ctx.layout = inputs
        ctx.dtype = local.dtype

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        layout: Layout = ctx.layout
        grad = grads[0].to(ctx.dtype)
        missing = layout.rows * layout.size - layout.shape[0]
        if missing:
            grad = torch.cat([grad, grad.new_zeros(missing, *grad.shape[1:])])
        part = layout.part
        return scattered(grad, layout.size, layout.group)[: part.stop - part.start], None


@dataclass
class _Gathered:
    """The whole parameters of a forward pass under way, by the address of their memory."""

    rows: dict[int, tuple[weakref.ref[Tensor], Tensor, Layout]] = field(
        default_factory=dict[int, tuple[weakref.ref[Tensor], Tensor, Layout]]
    )


_under_way: list[_Gathered] = []


@contextlib.contextmanager
def gathering_again() -> Generator[None]:
    """Inside, autograd keeps the rows of a gathered parameter and not the whole, and gathers them
    again when the backward pass asks. Without a compiler."""
    here = _Gathered()
    _under_way.append(here)

    def kept(x: Tensor) -> Any:
        known = here.rows.get(x.untyped_storage().data_ptr()) if x.numel() else None
        if known is None or known[0]() is None or known[2].dtype not in (None, x.dtype):
            return x
        _, local, layout = known
        return local, layout, x.size(), x.stride(), x.storage_offset()

    def whole(x: Any) -> Tensor:
        if isinstance(x, Tensor):
            return x
        local, layout, size, stride, offset = x
        return layout.gathered(local).as_strided(size, stride, offset)

    try:
        with torch.autograd.graph.saved_tensors_hooks(kept, whole):
            yield
    finally:
        _under_way.remove(here)


def reading(copied: nn.Module, layouts: Mapping[str, Layout]) -> nn.Module:
    """A skeleton that gathers its cut parameters where it reads them."""
    by_id = {id(p): layouts[n] for n, p in copied.named_parameters() if n in layouts}
    for module in list(copied.modules()):
        params = module._parameters  # pyright: ignore[reportPrivateUsage]
        cut = {n: by_id[id(p)] for n, p in params.items() if id(p) in by_id}
        if cut:
            fields: dict[str, Any] = {n: _property(n, layout) for n, layout in cut.items()}
            kind = type(module)
            fields["__module__"] = kind.__module__
            module.__class__ = type(kind.__name__, (kind,), fields)
    return copied


def _property(name: str, layout: Layout) -> property:
    def read(self: nn.Module) -> Tensor:
        local = cast(Tensor, self._parameters[name])  # pyright: ignore[reportPrivateUsage]
        whole = layout.gather(local)
        if not torch.compiler.is_compiling() and _under_way and whole.requires_grad:
            noted = weakref.ref(whole), local.detach(), layout
            _under_way[-1].rows[whole.untyped_storage().data_ptr()] = noted
        return whole

    return property(read)
