"""From an `nn.Module` to a pure function of its parameters, buffers and inputs.

A module given to fkd is never run, changed or trained itself: its structure is copied (the copy
shares the tensors), and the copy is run with `torch.func.functional_call`, which takes every
parameter and buffer as an argument.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils import stateless

from .._base.types import Batch
from .._blocks.sharing import Sharing
from .._refs.attached import without_values
from .._refs.refs import Capture, Tap
from .lease import same_shapes, when_freed
from .models import Model, modules_of, skeleton
from .recompute import is_marked, settle_blocks
from .taps import install, install_patches

NOTHING: Mapping[str, Any] = {}
_MOST_IDLE = 4
"""Skeletons of a model that are kept for later calls."""


class Applied(NamedTuple):
    """What a forward pass gives."""

    output: Any
    taps: dict[Any, Any]
    buffers: dict[str, Tensor]


@runtime_checkable
class Apply(Protocol):
    """A module as a pure function: `apply(tensors, buffers, args, kwargs)`.

    `patches` are what some submodules return instead of what they compute.
    """

    def __call__(
        self,
        params: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        patches: Mapping[str, Any] = NOTHING,
    ) -> Applied: ...


def make_apply(
    copied: nn.Module,
    taps: Sequence[Tap | Capture],
    paths: Sequence[Any],
    sharing: Sharing | None = None,
    patchable: Sequence[str] = (),
) -> Apply:
    """The pure function of a skeleton, which also returns what its taps saw.

    What a call uses belongs to the call: each has a skeleton of its own, with its own hooks,
    until no backward pass can come back to it (activation checkpointing runs the forward again
    there). So calls in several threads do not meet, and copies of an objective do not either.

    Raises:
      ValueError: a capture cannot be installed; the message says why.
    """
    return _Pure(copied, tuple(taps), tuple(paths), sharing, tuple(patchable))


class _Pure:
    """See `make_apply`."""

    def __init__(
        self,
        template: nn.Module,
        taps: tuple[Tap | Capture, ...],
        paths: tuple[Any, ...],
        sharing: Sharing | None,
        patchable: tuple[str, ...] = (),
    ) -> None:
        self._parts = (template, taps, paths, sharing, patchable)
        self._idle: list[_Instance] = []
        self._traced = self._instance(traced=True)

    def __call__(
        self,
        params: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        patches: Mapping[str, Any] = NOTHING,
    ) -> Applied:
        # Cloned, since modules update buffers in place; what they assign is written back
        # into the dict by functional_call itself.
        tensors = {**params, **{name: b.clone() for name, b in buffers.items()}}
        if torch.compiler.is_compiling():
            return self._traced.functional(tensors, buffers, args, kwargs, patches)
        try:
            instance = self._idle.pop()
        except IndexError:
            instance = self._instance(traced=False)
        return instance.leased(tensors, buffers, args, kwargs, patches, self._idle)

    def _instance(self, *, traced: bool) -> _Instance:
        template, taps, paths, sharing, patchable = self._parts
        copied = skeleton(template, training=template.training)
        instance = _Instance(copied, taps, paths, patchable, traced=traced)
        alike = not patchable and not is_marked(copied)  # a patched block is like no other
        if traced and sharing is not None and alike:
            prepared = instance.prepared
            sharing(copied, instance.stores, prepared.idle if prepared else lambda hook: False)
        return instance

    def __reduce__(self) -> tuple[Any, ...]:
        return _Pure, self._parts  # copies and pickles have skeletons of their own


class _Instance:
    """A skeleton with its hooks, used by one call at a time. Hooks write into a dict that every
    call clears, fills and hands out, so that they are part of the function and compile with it.
    """

    def __init__(
        self,
        copied: nn.Module,
        taps: Sequence[Tap | Capture],
        paths: Sequence[Any],
        patchable: Sequence[str] = (),
        *,
        traced: bool,
    ) -> None:
        self.module, self.seen, self.patches = copied, dict[Any, Any](), dict[str, Any]()
        self.flags: Mapping[str, Any] = {}
        modules = dict(copied.named_modules(remove_duplicate=False))
        install_patches(modules, patchable, self.patches)
        install(modules, [t for t in taps if isinstance(t, Tap)], self.seen)
        captures = [t for t in taps if isinstance(t, Capture)]
        library, inner, self.direct = _host(copied)
        self.prepared = library and library.prepare(
            inner, captures, paths if self.direct else [], traced=traced
        )
        if library is not None and not self.direct:
            library.install_output_hooks(inner)  # for what the wrapper itself asks the model for
        settle_blocks(copied, traced=traced)
        self.tied = tied_names(copied)
        if self.prepared is not None and self.direct:
            # A wrapper may ask for more than the refs do: what they need is added, nothing taken.
            flags = self.prepared.flags
            self.flags = {k: v for k, v in flags.items() if inner is copied or v}
        self.buffers = {
            f"{name}.{key}".removeprefix("."): (module, key)
            for name, module in modules.items()
            for key in module._buffers  # pyright: ignore[reportPrivateUsage]
        }

    @property
    def stores(self) -> list[dict[Any, Any]]:
        """Where hooks write."""
        return [self.seen] if self.prepared is None else [self.seen, self.prepared.store]

    def functional(
        self,
        tensors: dict[str, Tensor],
        buffers: Mapping[str, Tensor],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        patches: Mapping[str, Any] = NOTHING,
    ) -> Applied:
        """A call that leaves nothing behind: for what is traced, backward pass and all."""
        self.seen.clear()
        self.patches.clear()
        self.patches.update(patches)
        self._tie(tensors)
        output = torch.func.functional_call(
            self.module, tensors, tuple(args), {**kwargs, **self.flags}, tie_weights=False
        )
        output, seen = self._read(output)
        self.patches.clear()  # nothing of a traced call may outlive it
        now = {name: tensors[name] for name in buffers}
        return Applied(output, seen, same_shapes(buffers, now))

    def leased(
        self,
        tensors: dict[str, Tensor],
        buffers: Mapping[str, Tensor],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        patches: Mapping[str, Any],
        idle: list[_Instance],
    ) -> Applied:
        """A call whose tensors stay in place until its backward pass is over, or cannot come.

        What is recomputed there reads them, and buffers as they were before the call.
        """
        self._tie(tensors)
        swap = stateless._reparametrize_module(self.module, tensors)  # pyright: ignore[reportPrivateUsage]
        stack = contextlib.ExitStack()
        stack.callback(self._returned, idle)
        stack.enter_context(swap)
        try:
            self.seen.clear()
            self.patches.clear()
            self.patches.update(patches)
            output, seen = self._read(self.module(*args, **{**kwargs, **self.flags}))
            now = {n: getattr(*self.buffers[n]) for n in buffers}
            applied = Applied(output, seen, same_shapes(buffers, now))
            if self.module.training:
                for name, (module, key) in self.buffers.items():
                    if name in buffers:
                        module._buffers[key] = buffers[name].clone()  # pyright: ignore[reportPrivateUsage]
        except BaseException:
            stack.close()
            raise
        when_freed(applied, stack.close)
        return applied

    def _tie(self, tensors: dict[str, Tensor]) -> None:
        """Give a tensor under all of its names. torch would look for them in every call, and a
        compiler would trace how: a fifth of the time that a deep model compiles."""
        for names in self.tied:
            given = [tensors[name] for name in names if name in tensors]
            if given:
                tensors.update({name: given[0] for name in names if name not in tensors})

    def _returned(self, idle: list[_Instance]) -> None:
        self.seen.clear()
        self.patches.clear()
        if len(idle) < _MOST_IDLE:
            idle.append(self)

    def _read(self, output: Any) -> tuple[Any, dict[Any, Any]]:
        seen = dict(self.seen)
        self.seen.clear()
        if self.prepared is None:
            return output, seen
        output = self.prepared.outputs(output) if self.direct else output
        return output, {**seen, **self.prepared.collect()}


def tied_names(module: nn.Module) -> list[list[str]]:
    """The names of every tensor that a module has in several places."""
    names: dict[int, list[str]] = {}
    for prefix, part in module.named_modules():
        for tensors in (part._parameters, part._buffers):  # pyright: ignore[reportPrivateUsage]
            for name, x in tensors.items():
                if x is not None:
                    names.setdefault(id(x), []).append(f"{prefix}.{name}".removeprefix("."))
    return [several for several in names.values() if len(several) > 1]


def parameter_names(copied: nn.Module) -> dict[str, str]:
    """Every name of every parameter -> the one under which it is kept (tied weights)."""
    first = {id(p): name for name, p in reversed(list(copied.named_parameters()))}
    return {n: first[id(p)] for n, p in copied.named_parameters(remove_duplicate=False)}


def buffer_names(module: nn.Module) -> dict[str, str]:
    """The same of buffers."""
    first = {id(b): name for name, b in reversed(list(module.named_buffers()))}
    return {n: first[id(b)] for n, b in module.named_buffers(remove_duplicate=False)}


def call_arguments(model: Model, batch: Batch) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """The positional and keyword arguments of a model's forward, from the batch."""
    batch = without_values(batch)
    if model.inputs is not None:
        inputs = model.inputs(batch)
        if isinstance(inputs, Mapping):
            return (), inputs
        return (inputs, {}) if isinstance(inputs, (tuple, list)) else ((inputs,), {})
    module = model.module
    assert module is not None
    if isinstance(batch, Mapping):
        library, inner, direct = _host(module)
        if library is not None and direct:
            return (), library.default_inputs(inner, batch)
        accepted = inspect.signature(module.forward).parameters
        return (), {str(k): v for k, v in batch.items() if k in accepted}
    if isinstance(batch, (tuple, list)):
        return batch[: _positional(module)], {}
    return (batch,), {}


def _positional(module: nn.Module) -> int:
    """How many leading fields of a tuple batch a forward requires, at least one."""
    parameters = inspect.signature(module.forward).parameters.values()
    required = [
        p
        for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return max(len(required), 1)


def _host(module: nn.Module) -> tuple[ModuleType | None, nn.Module, bool]:
    """The boundary that a module needs, the model of that library that it is or wraps, and
    whether the two can be called alike (a wrapper such as PEFT's, which hands all keywords on)."""
    library = interop(module)
    if library is not None:
        return library, module, True
    for inner in module.modules():
        library = interop(inner)
        if library is not None and library.is_transformers(inner):
            parameters = inspect.signature(module.forward).parameters.values()
            return library, inner, any(p.kind is p.VAR_KEYWORD for p in parameters)
    return None, module, True


def interop(module: nn.Module) -> ModuleType | None:
    """The boundary to the library that a module comes from, if it needs one.

    The one door from the core to `fkd.interop`, opened only for such modules, so that the core
    never imports transformers for the sake of others.
    """
    modules = (c for c in type(module).__mro__ if issubclass(c, nn.Module))  # no mixins
    if any(c.__module__.partition(".")[0] == "transformers" for c in modules):
        from ..interop import transformers

        return transformers
    return None


def has_attention_captures(module: nn.Module) -> bool:
    """Whether attention maps, queries, keys and values of its layers can be asked for."""
    return _host(module)[0] is not None


def on_request(module: nn.Module) -> tuple[str, ...]:
    """The outputs that a model gives only where a ref reads them."""
    library, inner, _ = _host(module)
    return library.on_request(inner) if library is not None else ()


def layer_drop(model: Model) -> str | None:
    """The setting by which a model leaves out whole layers at random while it trains."""
    library, inner, _ = _host(model.module or nn.Identity())
    trains = model.kind == "trainable" and model.training
    return library.layer_drop(inner) if library is not None and trains else None


def not_traceable(models: Mapping[str, Model]) -> list[str]:
    """Why models that train cannot be compiled as one graph, as far as their library knows."""
    training = {n: m for n, m in models.items() if m.kind == "trainable" and m.training}
    return [
        f"model {name!r}: {why}"
        for name, module in modules_of(training).items()
        if (library := _host(module)[0]) is not None
        for why in library.not_traceable(module)
    ]


def predicts_the_next_token(module: nn.Module) -> bool:
    """Whether a model is a causal language model, as far as its library says."""
    library, inner, _ = _host(module)
    return library is not None and library.is_causal(inner)


def embedded_ids(module: nn.Module | None) -> int | None:
    """How many ids a model of a library embeds; None where it embeds none, or does not say."""
    embedding = getattr(module, "get_input_embeddings", None)
    try:
        return None if embedding is None else len(embedding().weight)
    except (AttributeError, NotImplementedError, TypeError):
        return None
