"""A block as two graphs, forward and backward, that every block equal to it shares."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias, cast

import torch
import torch._inductor.config as inductor_config
from torch import Tensor
from torch._functorch.aot_autograd import aot_export_joint_simple
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._guards import tracing
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import (
    _disable_current_modes,  # pyright: ignore[reportPrivateUsage]
)

from .halves import Source, keep, outputs_of, separated

Inner: TypeAlias = tuple[tuple[str, object], ...] | None
"""Options of Inductor, by name; None: graphs run as they are, and are not compiled."""

Flat: TypeAlias = Callable[..., tuple[Tensor, ...]]
"""Tensors to tensors: a block without its structure."""


class Spec(NamedTuple):
    """What a compiler has to know of a tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool

    def empty(self) -> Tensor:
        """A tensor like it."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)


class Under(NamedTuple):
    """The modes under which a block runs.

    Attributes:
      grad: whether gradients are recorded.
      kind: of the device.
      autocast: the dtype of matrix products there, or None.
      inner: options of Inductor.
    """

    grad: bool
    kind: str
    autocast: torch.dtype | None
    inner: Inner


@dataclass(frozen=True)
class Half:
    """A graph of tensors to tensors; Inductor compiles it in its first real call.

    Attributes:
      graph: what is compiled.
      inputs, outputs: what the tensors are.
      inner: options of Inductor.
    """

    graph: GraphModule
    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]
    inner: Inner
    compiled: list[Callable[..., Sequence[Tensor]]] = field(default_factory=list)

    def like(self) -> list[Tensor]:
        """Tensors as the graph gives them."""
        return [spec.empty() for spec in self.outputs]

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        if not self.compiled:
            self.compiled.append(_compiled(self))
        return list(self.compiled[0](*tensors))


@dataclass(frozen=True)
class Region:
    """A block as pure functions of tensors.

    Attributes:
      key: a hash of what it computes.
      results: how many outputs are the block's own; the others are kept for the backward graph.
      forward, backward: the graphs; no backward graph where nothing is differentiated.
      sources: what the backward graph is given.
      differentiated: the inputs that have a gradient, in the order of the backward's outputs.
      tangents: the outputs of which the backward graph is given the gradients.
      random: whether the forward graph draws random numbers.
    """

    key: str
    results: int
    forward: Half
    backward: Half | None
    sources: tuple[Source, ...]
    tangents: tuple[int, ...]
    differentiated: tuple[int, ...]
    random: bool


class Traced(NamedTuple):
    """A forward pass as it was traced: what tells one block from another.

    Attributes:
      text: the graph, operation by operation.
      copies: the outputs that share memory with an input or another output.
      tangents: the outputs that have a gradient.
      random: whether random numbers are drawn.
    """

    text: str
    copies: tuple[bool, ...]
    tangents: tuple[int, ...]
    random: bool


class NoRegion(Exception):
    """A block does what a graph of its own cannot do; the message says what."""


def trace(fn: Flat, specs: Sequence[Spec], under: Under) -> Traced:
    """The forward pass of a block on tensors without values.

    Raises:
      NoRegion: it changes its inputs, or reads tensors that are not its inputs.
      Exception: it cannot be traced.
    """
    with _apart(), FakeTensorMode(), _under(under):
        inputs = [spec.empty().requires_grad_(spec.requires_grad) for spec in specs]
        versions = [x._version for x in inputs]  # pyright: ignore[reportPrivateUsage]
        outputs: list[Tensor] = []

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            outputs[:] = fn(*tensors)
            return tuple(outputs)

        traced = make_fx(run, tracing_mode="real")(*inputs)
        if versions != [x._version for x in inputs]:  # pyright: ignore[reportPrivateUsage]
            raise NoRegion("it changes its parameters, buffers or inputs in place")
        if any(node.op == "get_attr" for node in traced.graph.nodes):
            raise NoRegion("it reads tensors that are neither parameters nor buffers nor inputs")
        memory = {_memory(x) for x in inputs}
        copies: list[bool] = []
        for output in outputs:
            copies.append(_memory(output) in memory)
            memory.add(_memory(output))
    nodes = list(traced.graph.nodes)
    places = {node: i for i, node in enumerate(nodes)}
    text = "\n".join(f"{n.op} {n.target} {_arguments(n, places)}" for n in nodes)
    tangents = tuple(i for i, x in enumerate(outputs) if x.requires_grad)
    return Traced(text, tuple(copies), tangents, any(map(_draws, nodes)))


def region(fn: Flat, specs: Sequence[Spec], under: Under, traced: Traced) -> Region:
    """The graphs of a block.

    Raises:
      Exception: torch cannot have it as a graph of its own, and says why.
    """
    text = repr((traced.text, traced.copies, tuple(specs), under, torch.__version__))
    key = hashlib.sha256(text.encode()).hexdigest()[:32]
    results = len(traced.copies)

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        outputs = fn(*tensors)
        return tuple(x.clone() if c else x for x, c in zip(outputs, traced.copies, strict=True))

    grad = under.grad and any(spec.requires_grad for spec in specs)
    with _apart(), FakeTensorMode(), _under(under):
        inputs = tuple(spec.empty().requires_grad_(grad and spec.requires_grad) for spec in specs)
        with inductor_config.patch({"fallback_random": True, **dict(under.inner or ())}):
            table = cast(Any, select_decomp_table())  # by whether Inductor draws random numbers
        joint: Any = aot_export_joint_simple(run, inputs, trace_joint=grad, decompositions=table)
    if not grad:
        return Region(key, results, _half(joint, under.inner), None, (), (), (), traced.random)
    with _apart():
        forward, backward = min_cut_rematerialization_partition(
            joint, inputs, num_fwd_outputs=results
        )
        forward, backward, sources = separated(forward, backward, results)
    grads = outputs_of(backward)
    wanted = tuple(i for i, grad in enumerate(grads) if grad is not None)
    keep(backward, [grad for grad in grads if grad is not None])
    halves = _half(forward, under.inner), _half(backward, under.inner)
    return Region(key, results, *halves, sources, traced.tangents, wanted, traced.random)


def _half(graph: GraphModule, inner: Inner) -> Half:
    nodes = list(graph.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    outputs = outputs_of(graph)
    return Half(graph, tuple(map(_spec, inputs)), tuple(map(_spec, outputs)), inner)


def _spec(node: Node) -> Spec:
    value: Tensor = node.meta["val"]
    return Spec(tuple(value.shape), value.stride(), value.dtype, value.device, False)


def _compiled(half: Half) -> Callable[..., Sequence[Tensor]]:
    if half.inner is None:
        return half.graph
    with _apart(), torch.no_grad():
        with FakeTensorMode():
            examples: list[Any] = [spec.empty() for spec in half.inputs]
        compiler: Any = torch._inductor  # pyright: ignore[reportPrivateUsage]
        call: Any = compiler.compile(half.graph, examples, options=dict(half.inner))
    return call


@contextlib.contextmanager
def _apart() -> Generator[None]:
    """Outside of any compilation that goes on."""
    with tracing(None), _disable_current_modes():
        yield


@contextlib.contextmanager
def _under(under: Under) -> Generator[None]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(under.grad))
        if under.autocast is not None:
            stack.enter_context(torch.autocast(under.kind, under.autocast, cache_enabled=False))
        yield


def _memory(x: Tensor) -> int:
    return x.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]


def _draws(node: Node) -> bool:
    """Whether an operation draws random numbers; attention may, and does so where it drops."""
    target: Any = node.target
    if torch.Tag.nondeterministic_seeded not in getattr(target, "tags", ()):
        return False
    if "scaled_dot_product" not in str(target):
        return True
    names = [a.name for a in target._schema.arguments]
    arguments: Mapping[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    return arguments.get("dropout_p", 0.0) != 0.0


def _arguments(node: Node, places: Mapping[Node, int]) -> str:
    named = torch.fx.map_arg((node.args, node.kwargs), lambda n: f"%{places[n]}")
    return repr(named)
