"""Attention maps, scores, queries, keys and values of chosen layers."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from . import _attend, _forward, _sites
from ._attend import Key, Store, Tag

KINDS = ("attention", "attention_scores", "query", "key", "value")
_STATES = KINDS[2:]


class Capture(NamedTuple):
    """An inner value of one attention layer.

    Attributes:
      kind: `"attention"`: probabilities after the softmax, before dropout, `[batch, head, query,
        key]`. `"attention_scores"`: what the softmax is taken of, with the mask in it: a pair
        that the model masks holds about the lowest number of the dtype, as in the eager path
        (the losses of `fkd.losses` leave such pairs out; padding goes to `where`).
        `"query"`, `"key"`, `"value"`: what the attention function is given, `[batch, head,
        length, head_dim]`, after rotary positions; key and value before they are repeated for
        grouped-query attention.
      layer: counted from 0, or from the end if negative.
      part: `"encoder"`, `"decoder"`, `"cross"`, `"text"`, `"vision"`: needed where a model has
        several stacks of layers.
    """

    kind: str
    layer: int
    part: str | None = None


class CaptureLike(Protocol):
    """Anything with the fields of a `Capture` (a ref, say)."""

    @property
    def kind(self) -> str: ...
    @property
    def layer(self) -> int: ...
    @property
    def part(self) -> str | None: ...


@dataclass(frozen=True, eq=False)
class Prepared:
    """How to call a prepared model and read what it captured.

        raw = functional_call(model, tensors, args, {**kwargs, **prepared.flags})
        output, captured = prepared.outputs(raw), prepared.collect()

    Attributes:
      flags: keyword arguments of the forward.
    """

    flags: Mapping[str, Any]
    captures: tuple[Capture, ...]
    _store: Store
    _maps: Mapping[Capture, tuple[str, int]]

    def outputs(self, raw: Any) -> Any:
        """The output as a plain tree."""
        for capture, (field, layer) in self._maps.items():
            self._store[capture] = raw[field][layer]
        return _forward.outputs(raw)

    def collect(self) -> dict[Key, Tensor]:
        """The captured values of the last call, by `(kind, layer, part)`; they are kept no longer.

        A layer that the model skipped (LayerDrop) is missing.
        """
        found = {tuple(c): self._store[c] for c in self.captures if c in self._store}
        self._store.clear()
        return found  # pyright: ignore[reportReturnType]


def prepare(
    model: nn.Module, captures: Sequence[CaptureLike], paths: Sequence[Sequence[Any]] = ()
) -> Prepared:
    """Change a copy of a model so that it captures what is asked for. Once, before compiling.

    Args:
      model: a copy that may be changed. The other layers' attention is left alone.
      captures: what to capture.
      paths: output paths that are read, such as `("hidden_states", 3)`.

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
    flags = _forward.flags(model, paths, attentions=bool(maps))
    if flags.get("output_attentions"):
        _return_all_maps(model, store)
    if flags.get("output_attentions") or flags.get("output_hidden_states"):
        _install_output_hooks(model)
    if chosen:
        model.register_forward_pre_hook(lambda *_: store.clear())
    return Prepared(flags, chosen, store, maps)


def _plan(
    model: nn.Module, captures: Sequence[Capture], store: Store
) -> dict[Capture, tuple[str, int]]:
    """Install every capture; those that only the output of maps can serve are returned."""
    if not captures:
        return {}
    parts = _sites.attention_parts(model)
    if parts:
        _tag(parts, captures, store)
        return {}
    return {c: _fallback(model, c, store) for c in captures if not _hooked(model, c, store)}


def _tag(parts: Mapping[str, _sites.Layers], captures: Sequence[Capture], store: Store) -> None:
    """Give each captured attention module its tag."""
    wanted: dict[str, dict[int, dict[str, tuple[Key, ...]]]] = defaultdict(dict)
    for capture in captures:
        part, layer = resolve(parts, capture)
        kinds = wanted[part].setdefault(layer, {})
        kinds[capture.kind] = (*kinds.get(capture.kind, ()), capture)
    for part, layers in wanted.items():
        sites = parts[part]
        if next(iter(sites.values())).shared:
            for module in {id(s.module): s.module for s in sites.values()}.values():
                attach(module, store, dict(layers), counter=f"calls of {part}")
        else:
            for layer, kinds in layers.items():
                attach(sites[layer].module, store, {None: kinds})


def attach(
    module: nn.Module,
    store: Store,
    wanted: Mapping[Any, Mapping[str, tuple[Key, ...]]],
    *,
    counter: str = "",
    returns: bool = False,
) -> None:
    """Let one attention module, and no other, use the capturing attention function."""
    from transformers import AttentionInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    AttentionInterface.register(_attend.NAME, _attend.capture_attention)
    base, eager = module.config._attn_implementation, _attend.eager_function(module)
    if base is not None and "flex" in base:
        raise ValueError(
            "attention capture: the model uses flex attention, whose masks cannot be read. "
            "Load it with attn_implementation='sdpa'."
        )
    usual = ALL_ATTENTION_FUNCTIONS.get_interface(base, eager)
    module._fkd_capture = Tag(wanted, returns, counter, store, usual, eager)
    module.config = copy.copy(module.config)
    module.config._attn_implementation_internal = _attend.NAME


def resolve(parts: Mapping[str, _sites.Layers], capture: Capture) -> tuple[str, int]:
    """The part and the layer, counted from 0, that a capture means."""
    if capture.kind not in KINDS:
        raise ValueError(f"attention capture: kind {capture.kind!r}; one of {KINDS} is expected.")
    part = _part(parts, capture)
    layers = parts[part]
    depth = max(layers) + 1
    layer = capture.layer + depth if capture.layer < 0 else capture.layer
    if layer in layers:
        return part, layer
    which = f" of part {part!r}" if len(parts) > 1 else ""
    have = f"0 to {depth - 1}" if len(layers) == depth else f"{sorted(layers)}"
    raise ValueError(
        f"{capture.kind}({capture.layer}): there is no such attention layer{which}; "
        f"layers {have} are expected (or {-depth} to -1, from the end)."
    )


def _part(parts: Mapping[str, _sites.Layers], capture: Capture) -> str:
    if capture.part in parts:
        return str(capture.part)
    own = [p for p in parts if p != "cross"]
    if len(own) == 1 and (capture.part is None or capture.part in own[0].split(".")):
        return own[0]
    raise ValueError(
        f"{capture.kind}({capture.layer}): part {capture.part!r}; one of {list(parts)} is "
        f"expected, since the model has several stacks of attention layers. "
        f"Write {capture.kind}({capture.layer}, part={next(iter(parts))!r})."
    )


def _hooked(model: nn.Module, capture: Capture, store: Store) -> bool:
    """Capture a projection by a hook, in a model whose attention cannot be replaced."""
    if capture.kind not in _STATES:
        return False
    parts = _sites.projection_parts(model)
    if not parts:
        raise ValueError(
            f"{capture.kind}({capture.layer}): {type(model).__name__} has no separate query, key "
            "and value projections, and its attention cannot be replaced. "
            "Use .tap(name) on the submodule that computes them."
        )
    part, layer = resolve(parts, capture)
    module = parts[part][layer].module
    found = _sites.projections(module)
    assert found is not None
    head_dim = found[0].out_features // _heads(module, model)
    projection = found[_STATES.index(capture.kind)]
    projection.register_forward_hook(_split_hook(store, capture, head_dim))
    return True


def _split_hook(store: Store, capture: Capture, head_dim: int) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        del module, args
        store[capture] = output.unflatten(-1, (-1, head_dim)).transpose(1, 2)

    return hook


def _heads(module: nn.Module, model: nn.Module) -> int:
    for name in ("num_attention_heads", "num_heads", "n_heads", "n_head"):
        for owner in (module, getattr(module, "config", None), getattr(model, "config", None)):
            if isinstance(getattr(owner, name, None), int):
                return getattr(owner, name)
    raise ValueError(f"attention capture: {type(module).__name__} does not say how many heads.")


def _fallback(model: nn.Module, capture: Capture, store: Store) -> tuple[str, int]:
    """Where the model's own output has a map. All layers compute theirs then."""
    del store
    if capture.kind != "attention" or not _forward.is_transformers(model):
        raise ValueError(
            f"{capture.kind}({capture.layer}): the attention of {type(model).__name__} cannot be "
            "replaced, so its scores cannot be captured. attention(layer), query, key, value "
            "and .tap(name) can."
        )
    fields = {"encoder": "encoder_attentions", "decoder": "decoder_attentions"}
    fields["cross"] = "cross_attentions"
    several = bool(getattr(model.config, "is_encoder_decoder", False))
    if several and capture.part not in fields:
        raise ValueError(
            f"attention({capture.layer}): part {capture.part!r}; one of {list(fields)} is expected."
        )
    depth = model.config.num_hidden_layers
    if not several and not -depth <= capture.layer < depth:
        raise ValueError(
            f"attention({capture.layer}): there is no such attention layer; layers 0 to "
            f"{depth - 1} are expected (or {-depth} to -1, from the end)."
        )
    return (fields.get(str(capture.part), "attentions"), capture.layer)


def _return_all_maps(model: nn.Module, store: Store) -> None:
    """Every layer returns its map, for transformers to collect: as `output_attentions` asks."""
    parts = _sites.attention_parts(model)
    for site in (s for layers in parts.values() for s in layers.values()):
        tag: Tag | None = getattr(site.module, "_fkd_capture", None)
        if tag is None:
            attach(site.module, store, {}, returns=True)
        elif not tag.returns:
            module: Any = site.module
            module._fkd_capture = Tag(tag.wanted, True, tag.counter, tag.store, tag.base, tag.eager)
    if not parts:
        for module in model.modules():
            if hasattr(getattr(module, "config", None), "_attn_implementation_internal"):
                module.config._attn_implementation_internal = "eager"


def _install_output_hooks(model: nn.Module) -> None:
    """Install the hooks that transformers would install, under a lock, in the first forward.

    Hooks that the model's own earlier forward passes have left are taken away first: installed
    twice, they collect everything twice.
    """
    from transformers.utils import output_capturing

    for module in model.modules():
        hooks: Any = module._forward_hooks
        for key in [k for k, h in hooks.items() if h.__module__ == output_capturing.__name__]:
            del hooks[key]
        vars(module).pop("_output_capturing_hooks_installed", None)
    if _forward.is_transformers(model):
        output_capturing.maybe_install_capturing_hooks(model)  # pyright: ignore[reportArgumentType]
