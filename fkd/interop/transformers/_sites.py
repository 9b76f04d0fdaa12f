"""Where the attention of a model happens: found by structure, named by part and layer."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from ._types import KINDS, Capture

_FAMILIES = (
    {"encoder": "encoder", "decoder": "decoder"},
    {
        "text": "text",
        "language": "text",
        "vision": "vision",
        "visual": "vision",
        "image": "vision",
        "audio": "audio",
        "speech": "audio",
    },
)
"""Words in the name of a stack, and the name of the part that they mean."""
_CROSS = ("cross", "encoder_attn", "encdec", "encoder_decoder")
_SOFTMAX = {"softmax", "Softmax", "scaled_dot_product_attention"}
_PROJECTIONS = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("query_proj", "key_proj", "value_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("q", "k", "v"),
)


@dataclass(frozen=True, eq=False)
class Site:
    """An attention module of a model.

    Attributes:
      module: the module that calls the attention function, or holds the projections.
      name: its dotted name.
      stack: the dotted name of the list of layers that it is in.
      index: its place in that list.
      cross: it attends to another sequence.
      shared: it runs several times in a forward pass, as several layers.
    """

    module: nn.Module
    name: str
    stack: str
    index: int
    cross: bool
    shared: bool = False


Layers = Mapping[int, Site]
"""The sites of one part, by layer."""


def uses_interface(module: nn.Module) -> bool:
    """Whether a module calls the attention function that its config names."""
    forward = inspect.unwrap(type(module).forward)
    code = getattr(forward, "__code__", None)
    return (
        code is not None
        and "ALL_ATTENTION_FUNCTIONS" in code.co_names
        and hasattr(module, "config")
    )


def number_of_heads(module: nn.Module, model: nn.Module) -> int:
    """The number of attention heads, as a module or its config states it."""
    for owner in (module, getattr(module, "config", None), getattr(model, "config", None)):
        for name in ("num_attention_heads", "num_heads", "n_heads", "n_head"):
            if isinstance(getattr(owner, name, None), int):
                return getattr(owner, name)
    raise ValueError(f"attention capture: {type(module).__name__} does not say how many heads.")


def projections(module: nn.Module) -> tuple[nn.Linear, nn.Linear, nn.Linear] | None:
    """The query, key and value projections of a module, if they are separate layers."""
    for names in _PROJECTIONS:
        linear = [getattr(module, n, None) for n in names]
        if all(isinstance(f, nn.Linear) for f in linear):
            return tuple(linear)  # pyright: ignore[reportReturnType]
    return None


def computes_attention(module: nn.Module) -> bool:
    """Whether a module computes attention in its own code."""
    if "att" not in type(module).__name__.lower() or uses_interface(module):
        return False
    has_softmax = any(isinstance(child, nn.Softmax) for child in module.children())
    return has_softmax or bool(names_used(type(module)) & _SOFTMAX)


def applies_rotary(module: nn.Module) -> bool:
    """Whether queries and keys are rotated after they are projected."""
    return any("rotary" in n or "rope" in n for n in names_used(type(module)))


@functools.cache
def names_used(cls: type) -> frozenset[str]:
    """The names in the code of a class, and of the functions of its file that it calls."""
    used: set[str] = set()
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] == "torch" or base is object:
            continue
        for method in (inspect.unwrap(m) for m in vars(base).values() if callable(m)):
            if isinstance(method, FunctionType) and method.__name__ != "__init__":
                names = _code_names(method.__code__)
                called = [method.__globals__.get(n) for n in names]
                here = [f for f in called if isinstance(f, FunctionType)]
                beside = [f for f in here if f.__module__ == base.__module__]
                used |= names.union(*(_code_names(f.__code__) for f in beside))
    return frozenset(used)


def _code_names(code: CodeType) -> set[str]:
    inner = (c for c in code.co_consts if isinstance(c, CodeType))
    return set(code.co_names).union(*map(_code_names, inner))


def attention_parts(root: nn.Module) -> dict[str, Layers]:
    """The modules that compute attention, or have it computed, by part and layer."""
    sites = list(_sites(root))
    by_interface = [s for s in sites if uses_interface(s.module)]
    taken = {(s.stack, s.cross) for s in by_interface}  # there, no other softmax is attention
    by_code = [s for s in sites if computes_attention(s.module)]
    by_code = [s for s in by_code if (s.stack, s.cross) not in taken]
    by_code = [s for s in by_code if not _inside(s, by_interface)]
    by_code = [s for s in by_code if not _around(s, by_code)]
    return _parts([s for s in sites if s in by_interface or s in by_code])


def _inside(site: Site, others: list[Site]) -> bool:
    return any(site.name.startswith(f"{o.name}.") for o in others)


def _around(site: Site, others: list[Site]) -> bool:
    return any(o.name.startswith(f"{site.name}.") for o in others)


def projection_parts(root: nn.Module) -> dict[str, Layers]:
    """The modules with separate query, key and value projections, by part and layer."""
    return _parts([s for s in _sites(root) if projections(s.module) is not None])


def _sites(root: nn.Module) -> Iterator[Site]:
    lists = {n for n, m in root.named_modules() if isinstance(m, (nn.ModuleList, nn.Sequential))}
    for name, module in root.named_modules():
        keys = name.split(".")
        at = next((i for i in range(len(keys)) if _is_index(keys, i, lists)), None)
        if at is not None:
            inside = ".".join([*keys[at + 1 :], type(module).__name__]).lower()
            cross = any(w in inside for w in _CROSS) or _true(module, "is_cross_attention")
            yield Site(module, name, ".".join(keys[:at]), int(keys[at]), cross)


def _is_index(keys: list[str], i: int, lists: set[str]) -> bool:
    return keys[i].isdigit() and ".".join(keys[:i]) in lists


def _true(module: nn.Module, name: str) -> bool:
    return getattr(module, name, False) is True


def _parts(sites: list[Site]) -> dict[str, Layers]:
    stacks = list(dict.fromkeys(s.stack for s in sites if not s.cross))
    labels = label_stacks(stacks)
    parts = {labels[k]: [s for s in sites if s.stack == k and not s.cross] for k in stacks}
    cross = [s for s in sites if s.cross]
    for stack in dict.fromkeys(s.stack for s in cross):
        several = len({s.stack for s in cross}) > 1
        name = f"{labels.get(stack, stack)}.cross" if several else "cross"
        parts[name] = [s for s in cross if s.stack == stack]
    split = [pair for name, layers in parts.items() for pair in _by_place(name, layers)]
    return {name: _layers(layers) for name, layers in split}


def _by_place(part: str, sites: list[Site]) -> list[tuple[str, list[Site]]]:
    """A part as it is, or by place in the layer where a layer has several attention modules."""
    split = [re.fullmatch(r"(.*\.\d+)(?:\.(.*))?", s.name) for s in sites]
    layers, places = ([m[i] or "" for m in split if m] for i in (1, 2))
    if len(set(layers)) == len(sites):
        return [(part, sites)]
    of = {p: [s for s, q in zip(sites, places, strict=True) if p == q] for p in places}
    return [(f"{part}.{p}", of_place) for p, of_place in of.items()]


def label_stacks(stacks: list[str]) -> dict[str, str]:
    """A short name for each stack of layers: encoder, decoder, text, vision; or its own."""
    for family in _FAMILIES:
        labels = [_word(stack, family) for stack in stacks]
        if None not in labels and len(set(labels)) == len(stacks):
            return dict(zip(stacks, (str(label) for label in labels), strict=True))
    return {stack: stack for stack in stacks}


def _word(stack: str, family: Mapping[str, str]) -> str | None:
    words = (part for key in stack.split(".") for w, part in family.items() if w in key)
    return next(words, None)


def _layers(sites: list[Site]) -> Layers:
    """Sites by layer: by place in the stack if that is unique, by order otherwise."""
    config: Any = getattr(sites[0].module, "config", None)
    if hasattr(config, "num_hidden_groups"):
        return _shared(sites, config)
    by_index = len({s.index for s in sites}) == len(sites)
    return {s.index if by_index else i: s for i, s in enumerate(sites)}


def _shared(sites: list[Site], config: Any) -> Layers:
    """Layers that share their weights (ALBERT): a group of modules runs for several layers."""
    calls = config.num_hidden_layers // config.num_hidden_groups
    inner = len(sites) // config.num_hidden_groups
    groups = [sites[i : i + inner] for i in range(0, len(sites), inner)]
    run = [s for group in groups for _ in range(calls) for s in group]
    return {layer: replace(site, shared=True) for layer, site in enumerate(run)}


def resolve(parts: Mapping[str, Layers], capture: Capture) -> tuple[str, int]:
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


def _part(parts: Mapping[str, Layers], capture: Capture) -> str:
    if capture.part in parts:
        return str(capture.part)
    stacks = [p for p in parts if p != "cross"]
    if len(stacks) == 1 and (capture.part is None or capture.part in stacks[0].split(".")):
        return stacks[0]
    language = [p for p in stacks if "language" in parts[p][min(parts[p])].stack]
    if capture.part is None and len(language) == 1:
        return language[0]
    head = f"{capture.kind}({capture.layer}): part {capture.part!r}"
    if len(parts) == 1:
        raise ValueError(f"{head}; the model has one stack of attention layers. Leave out part.")
    likely = "text" if "text" in parts else next(iter(parts))
    raise ValueError(
        f"{head}; one of {list(parts)} is expected, since the model has several stacks of "
        f"attention layers. Write {capture.kind}({capture.layer}, part={likely!r})."
    )
