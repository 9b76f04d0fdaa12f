"""Attention maps, scores, queries, keys and values of chosen layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from ._attend import Key, Store, attach, numbered
from ._collect import collects_nothing, install_output_hooks, return_all_maps
from ._fallback import hook_projection, output_map
from ._forward import flags as output_flags
from ._forward import outputs as plain_outputs
from ._recompute import settle_checkpointing
from ._sites import Layers, attention_parts, resolve, uses_interface
from ._types import Capture, CaptureLike
from ._watch import Wanted, watch


@dataclass(frozen=True, eq=False)
class Prepared:
    """How to call a prepared model and read what it captured.

        raw = functional_call(model, tensors, args, {**kwargs, **prepared.flags})
        output, captured = prepared.outputs(raw), prepared.collect()

    Attributes:
      flags: keyword arguments of the forward.
    """

    flags: Mapping[str, Any]
    _model: nn.Module
    captures: tuple[Capture, ...]
    _store: Store
    _maps: Mapping[Capture, tuple[str, int]]

    def idle(self, hook: object) -> bool:
        """Whether a hook is one by which transformers collects what nobody has asked for."""
        return collects_nothing(hook, self._model, self.flags)

    @property
    def store(self) -> Store:
        """Where the layers write what is captured."""
        return self._store

    def outputs(self, raw: Any) -> Any:
        """The output as a plain tree."""
        for capture, (field, layer) in self._maps.items():
            maps = raw.get(field) or ()
            if not -len(maps) <= layer < len(maps):
                raise ValueError(
                    f"{capture.kind}({capture.layer}): the model gives {len(maps)} maps in {field}."
                )
            self._store[capture] = maps[layer]
        return plain_outputs(raw)

    def collect(self) -> dict[Key, Tensor]:
        """The captured values of the last call, by `(kind, layer, part)`; they are kept no longer.

        A layer that the model skipped (LayerDrop) is missing.
        """
        captured = {tuple(c): self._store[c] for c in self.captures if c in self._store}
        self._store.clear()
        return captured  # pyright: ignore[reportReturnType]


def prepare(
    model: nn.Module,
    captures: Sequence[CaptureLike],
    paths: Sequence[Sequence[Any]] = (),
    *,
    traced: bool = False,
) -> Prepared:
    """Change a copy of a model so that it captures what is asked for. Once, before compiling.

    Args:
      model: a copy that may be changed. The other layers' attention is left alone.
      captures: what to capture.
      paths: output paths that are read, such as `("hidden_states", 3)`.
      traced: the model is run while a graph is traced.

    Returns:
      The flags to call the model with, and the functions that read the results.

    Raises:
      ValueError: the model has no such part or layer, or its attention gives no such value;
        the message says what there is.

    Example:
      >>> from fkd.interop.transformers import Capture, prepare
      >>> from transformers import BertConfig, BertModel
      >>> config = BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=2,
      ...                     intermediate_size=8, vocab_size=10)
      >>> model = BertModel(config).eval()
      >>> prepared = prepare(model, [Capture("attention", -1)])
      >>> _ = model(torch.tensor([[1, 2, 3]]), **prepared.flags)
      >>> prepared.collect()["attention", -1, None].shape
      torch.Size([1, 2, 3, 3])
    """
    chosen = tuple(dict.fromkeys(Capture(c.kind, c.layer, c.part) for c in captures))
    store: Store = {}
    maps = _plan(model, chosen, store)
    flags = output_flags(model, paths, attentions=bool(maps))
    if flags.get("output_attentions"):
        return_all_maps(model, store)
    if flags.get("output_attentions") or flags.get("output_hidden_states"):
        install_output_hooks(model)
    settle_checkpointing(model, traced=traced)
    if chosen:
        model.register_forward_pre_hook(lambda *_: store.clear())
    return Prepared(flags, model, chosen, store, maps)


def _plan(
    model: nn.Module, captures: Sequence[Capture], store: Store
) -> dict[Capture, tuple[str, int]]:
    """Install every capture; those that only the output of maps can serve are returned."""
    if not captures:
        return {}
    parts = attention_parts(model)
    if parts:
        _tag(model, parts, captures, store)
        return {}
    return {c: output_map(model, c) for c in captures if not hook_projection(model, c, store)}


def _tag(
    model: nn.Module, parts: Mapping[str, Layers], captures: Sequence[Capture], store: Store
) -> None:
    """Let each captured attention module write what is wanted of it."""
    wanted: dict[str, dict[int, dict[str, tuple[Key, ...]]]] = defaultdict(dict)
    for capture in captures:
        part, layer = resolve(parts, capture)
        kinds = wanted[part].setdefault(layer, {})
        kinds[capture.kind] = (*kinds.get(capture.kind, ()), capture)
    for part, layers in wanted.items():
        sites = parts[part]
        if next(iter(sites.values())).shared:
            for module in {id(s.module): s.module for s in sites.values()}.values():
                _install(model, module, store, dict(layers), f"calls of {part}")
        else:
            for layer, kinds in layers.items():
                _install(model, sites[layer].module, store, {None: kinds}, "")


def _install(
    model: nn.Module, module: nn.Module, store: Store, wanted: Wanted, counter: str
) -> None:
    if uses_interface(module):
        attach(module, store, wanted, counter=counter)
    else:
        watch(module, model, store, wanted, partial(numbered, store, counter))
