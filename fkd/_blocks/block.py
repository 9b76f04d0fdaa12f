"""The forward of a block, by the graphs that it shares with the blocks that compute the same."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import torch
import torch._dynamo
from torch import Tensor, nn
from torch.nn.utils import stateless

from . import op
from .region import Inner, NoRegion, Region, Spec, Traced, Under, region, trace
from .structure import flattened, rebuilt

Stores: TypeAlias = Sequence[MutableMapping[Any, Any]]
"""The dicts into which hooks inside of a block write."""

Known: TypeAlias = dict[tuple[Traced, tuple[Spec, ...], Under], Region]
"""The regions of one skeleton."""

Leaves: TypeAlias = Sequence[tuple[nn.Module, str]]
"""Where the parameters and buffers of a block are."""

_LOG = logging.getLogger(__name__)


class Call(NamedTuple):
    """How a block is called through a region.

    Attributes:
      key, random: of the region.
      written: `(number of the store, key)` of what hooks write, in the order of the results.
      output: the structure of the output, with the places of results for its tensors.
    """

    key: str
    random: bool
    written: tuple[tuple[int, Any], ...]
    output: Any


def shared_forward(
    block: nn.Module, stores: Stores, inner: Inner, known: Known
) -> Callable[..., Any]:
    """The forward of a block for a compiler to trace: one operation, where the block is a pure
    function of tensors; else the forward as it was.

    Args:
      block: of a skeleton. Dynamo swaps its tensors; what it holds itself is only its structure.
      stores: the dicts into which hooks inside of the block write.
      inner: options of Inductor.
      known: the regions of the skeleton; is added to.
    """
    plain = block.forward
    leaves = list(_leaves(block))
    calls: list[Call] = []

    # What these give is a constant of the trace: Python that runs while a graph is made.
    @torch._dynamo.assume_constant_result
    def number(structure: Any, specs: Any, grad: bool, autocast: torch.dtype | None) -> int:
        whole = tuple(Spec(*spec) for spec in specs)
        under = Under(grad, whole[0].device.type, autocast, inner)
        call = _call(block, plain, leaves, stores, structure, whole, under, known)
        if call is None:
            return -1
        calls.append(call)
        return len(calls) - 1

    @torch._dynamo.assume_constant_result
    def key(i: int) -> str:
        return calls[i].key

    @torch._dynamo.assume_constant_result
    def random(i: int) -> bool:
        return calls[i].random

    @torch._dynamo.assume_constant_result
    def written(i: int) -> tuple[tuple[int, Any], ...]:
        return calls[i].written

    @torch._dynamo.assume_constant_result
    def output(i: int) -> Any:
        return calls[i].output

    def forward(*args: Any, **kwargs: Any) -> Any:
        tensors: list[Tensor] = []
        structure = flattened((args, kwargs), tensors)
        if structure is None:
            return plain(*args, **kwargs)
        tensors += [getattr(module, name) for module, name in leaves]
        specs = tuple(
            [(tuple(x.shape), x.stride(), x.dtype, x.device, x.requires_grad) for x in tensors]
        )
        i = number(structure, specs, torch.is_grad_enabled(), _autocast(tensors[0]))
        if i < 0:
            return plain(*args, **kwargs)
        ops: Any = torch.ops.fkd
        results = (ops.random_block if random(i) else ops.block)(key(i), tensors)
        for n, (store, name) in enumerate(written(i)):
            stores[store][name] = results[n]
        return rebuilt(output(i), results)

    return forward


def _autocast(x: Tensor) -> torch.dtype | None:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def _leaves(block: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for module in block.modules():
        tensors = (module._parameters, module._buffers)  # pyright: ignore[reportPrivateUsage]
        yield from ((module, name) for part in tensors for name, x in part.items() if x is not None)


def _call(
    block: nn.Module,
    plain: Callable[..., Any],
    leaves: Leaves,
    stores: Stores,
    structure: Any,
    specs: tuple[Spec, ...],
    under: Under,
    known: Known,
) -> Call | None:
    """How a block is called, for arguments of one structure; None if it has no region."""
    written: list[tuple[int, Any]] = []
    outputs: list[Any] = []
    run = _run(block, plain, leaves, stores)

    def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
        output, entries = run(structure, tensors)
        written[:] = [(i, k) for i, k, _ in entries]
        results = [v for _, _, v in entries]
        outputs[:] = [flattened(output, results, fake=True)]
        if outputs[0] is None:
            raise NoRegion("it returns something else than tensors")
        return tuple(results)

    try:
        traced = trace(flat, specs, under)
        if traced.random and getattr(block, "gradient_checkpointing", False):
            raise NoRegion("it is recomputed but for what draws random numbers")
        same = (traced, specs, under)
        if same not in known:
            known[same] = op.add(region(flat, specs, under, traced))
    except Exception as error:
        # Whatever it is: the block is traced as it stands, where a mistake of its own shows.
        _LOG.debug("%s is compiled as it stands: %s", type(block).__name__, error)
        return None
    return Call(known[same].key, known[same].random, tuple(written), outputs[0])


Entries: TypeAlias = list[tuple[int, Any, Tensor]]
"""`(number of the store, key, value)` of what hooks wrote."""


def _run(
    block: nn.Module, plain: Callable[..., Any], leaves: Leaves, stores: Stores
) -> Callable[[Any, Sequence[Tensor]], tuple[Any, Entries]]:
    """A call of a block with tensors for its own, which leaves nothing behind."""
    prefixes = {id(m): name for name, m in reversed(list(block.named_modules()))}
    names = [f"{prefixes[id(m)]}.{name}".removeprefix(".") for m, name in leaves]

    def run(structure: Any, tensors: Sequence[Tensor]) -> tuple[Any, Entries]:
        args, kwargs = rebuilt(structure, tensors)
        parameters = tensors[len(tensors) - len(names) :]
        before = [dict(store) for store in stores]
        attributes = [dict(vars(module)) for module in block.modules()]
        for store in stores:
            store.clear()
        try:
            replaced = dict(zip(names, parameters, strict=True))
            with stateless._reparametrize_module(block, replaced):  # pyright: ignore[reportPrivateUsage]
                output = plain(*args, **kwargs)
                kept = all(getattr(m, n) is x for (m, n), x in zip(leaves, parameters, strict=True))
            entries = [(i, k, v) for i, store in enumerate(stores) for k, v in store.items()]
        finally:
            for store, old in zip(stores, before, strict=True):
                store.clear()
                store.update(old)
        if not kept or _changed(block, attributes):
            raise NoRegion("it changes what a module holds")
        if not all(isinstance(v, Tensor) for _, _, v in entries):
            raise NoRegion("a hook in it keeps something else than tensors")
        return output, cast(Entries, entries)

    return run


def _changed(block: nn.Module, before: Sequence[dict[str, Any]]) -> bool:
    """Whether an attribute of a module in a block was set; if so, all are set back."""
    changed = False
    for module, old in zip(block.modules(), before, strict=True):
        now = vars(module)
        if now.keys() != old.keys() or any(now[k] is not old[k] for k in old):
            changed = True
            now.clear()
            now.update(old)
    return changed
