"""Grow a model from a smaller one that is trained: more layers, more heads and units."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .._layers import (
    bare_state,
    begun,
    chosen_layers,
    depth_of,
    layers_of_stack,
    stacks_of,
)
from .alike import embeddings_of, is_norm
from .axes import (
    Attention,
    Group,
    Place,
    axes_of,
    entries,
    names_of,
    owner_of,
    units_in,
    units_of_heads,
)
from .cut import place_of, refuse_misfits
from .deeper import add_nothing_in_a_row
from .fused import fused_in, joined, parted
from .grown import Grown, grown_alike
from .heads import refuse_heads

_Model = TypeVar("_Model", bound=nn.Module)
Chosen = dict[str, tuple[str, list[int]]]
"""For each of our stacks the one that it begins as, and which layers of it."""


def grow(
    larger: _Model,
    trained: nn.Module,
    *,
    layers: Sequence[int | None] | Mapping[str, Sequence[int | None]] | None = None,
    seed: int = 0,
) -> _Model:
    """A copy of a larger model that begins as a smaller one that is trained.

    Wider: every unit of the larger model is one of the smaller; what reads copies of one unit
    shares its weight among them, so that the model computes what the smaller one does. The shares
    are drawn, so that copies do not learn the same. Axes that stand for the same units are grown
    alike: within a layer its heads (whole, and query heads with the keys that they read) and its
    intermediate units, over the whole model the hidden size. A head on the table of tokens (tied
    embeddings) reads every copy with the same weight, so that the norm before it gives each copy
    its share.

    Deeper: each layer of the larger model is a layer of the smaller (`[0, 0, 1, 1]` repeats
    each, which does not compute the same), or new (`[0, None, 1, None]`): a copy of the layer
    before whose branches add nothing, so that the model computes what the smaller one does. Where
    norms come after the branches (BERT), the last norm of the new layer scales, and that of the
    layer before no longer does; this is exact up to the norms' epsilon. In a `Sequential` a new
    layer is the identity.

    Any two models whose parameters have the same names, of transformers, a `Sequential`, or your
    own. Models of transformers are then run on inputs that are made up, and a larger one that does
    not compute what the trained one does is refused. A trained student grows into its teacher's
    size, a run of progressive growing is a row of `fkd.stages`.

    Args:
      larger: which stays as it is.
      trained: which stays as it is.
      layers: for each layer of the larger model one of the trained one, or None; None: both have
        the same number of layers.
      seed: of the shares.

    Returns:
      A new model of the larger one's structure.

    Raises:
      ValueError: a parameter has none of its name in the trained model, or is larger there; the
        hidden size is no multiple where a norm is taken over it; larger heads; something depends
        on the sizes (slopes by head, as in BLOOM; embeddings scaled by the hidden size and added
        to others, as in some BARTs); no norm before a tied head; a new first layer whose norms
        come after its branches; layers of another type.

    Example:
      >>> small = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
      >>> large = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
      >>> x = torch.randn(4, 2)
      >>> torch.allclose(grow(large, small)(x), small(x), atol=1e-6)
      True
      >>> deep = nn.Sequential(*small[:2], nn.Linear(3, 3), nn.ReLU(), small[2])
      >>> torch.allclose(grow(deep, small, layers=[0, 1, None, None, 2])(x), small(x), atol=1e-6)
      True

    Reference:
      Chen et al., Net2Net, arXiv:1511.05641; Chen et al., bert2BERT, arXiv:2110.07143; Wu et al.,
      LLaMA Pro, arXiv:2401.02415; Wang et al., LEMON, arXiv:2310.07999; Gong et al., Efficient
      Training of BERT by Progressively Stacking, ICML 2019.
    """
    refuse_heads("grow", larger, trained)
    parts = fused_in(larger, bare_state(larger)), fused_in(trained, bare_state(trained))
    ours, theirs = parted(bare_state(larger), parts[0]), parted(bare_state(trained), parts[1])
    chosen, new = _chosen(larger, trained, ours, theirs, layers)
    places = _places(ours, theirs, chosen, {n for n in ours if _is_new(n, new)}, larger)
    axes = axes_of("grow", (larger, trained), places, ours, theirs)
    modules = names_of(larger)
    _refuse_norms(modules, places, ours, theirs)
    units = units_in(axes, _in_turn, _heads_in_turn)
    generator = torch.Generator().manual_seed(seed)
    shares = {group: _shares(units[group], generator) for group in sorted(units, key=str)}
    table = _table_name(larger)
    same = ours[table].data_ptr() if table in ours else -1  # a head may be the table
    start: dict[str, Tensor] = {}
    for place in places:
        tensor, owner = theirs[place.source], owner_of(modules, place.name)
        tied = place.name != table and ours[place.name].data_ptr() == same
        reading = None if tied else _reading_axis(owner, place.name, tensor, larger)
        for i in range(tensor.ndim):
            if (place.name, i) not in axes.axes:
                continue
            axis = axes.axes[place.name, i]
            tensor = tensor.index_select(i, entries(axis, units[axis.group]).to(tensor.device))
            if i == reading:
                shape = [-1 if k == i else 1 for k in range(tensor.ndim)]
                share = shares[axis.group].repeat_interleave(axis.each)
                tensor = tensor * share.to(tensor).reshape(shape)
        start[place.name] = tensor
    result = begun(larger, joined(start, parts[0]))
    if isinstance(larger, nn.Sequential):
        for block in new:
            add_nothing_in_a_row(result.get_submodule(block), block)
        return result
    width = axes.axes.get((table, 1))
    hidden = None if width is None else (units[width.group], shares[width.group])
    kept = _kept(chosen, new)
    exact = all(kept[s] == [*range(depth_of(theirs, chosen[s][0]))] for s in kept)
    return grown_alike(Grown(result, trained, new, hidden, exact))


def _table_name(model: Any) -> str:
    """The bare name of a model's table of tokens."""
    table = embeddings_of(model)
    names = (name for name, module in names_of(model).items() if module is table)
    return f"{next(names, '')}.weight"


def _kept(chosen: Chosen, new: Sequence[str]) -> dict[str, list[int]]:
    """The layers that are layers of the trained model, of every stack."""
    return {
        stack: [n for i, n in enumerate(numbers) if f"{stack}.{i}" not in new]
        for stack, (_, numbers) in chosen.items()
    }


def _chosen(
    larger: nn.Module,
    trained: nn.Module,
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    layers: Any,
) -> tuple[Chosen, list[str]]:
    """For each stack the layers that ours begin as, and the names of new blocks."""
    chosen: Chosen = {}
    new: list[str] = []
    if isinstance(larger, nn.Sequential):
        if layers is None:
            return {}, []
        sizes = len(larger), len(trained) if isinstance(trained, nn.Sequential) else 0
        return {"": ("", _sources("", layers, *sizes, new))}, new
    stacks, sources = stacks_of(larger), stacks_of(trained)
    for label, stack in stacks.items():
        if label not in sources:
            continue
        mine, deep = depth_of(ours, stack), depth_of(theirs, sources[label])
        numbers: Any = layers_of_stack(layers, label, "grow")
        if numbers is None and mine != deep:
            raise ValueError(
                f"grow: the larger model has {mine} layers and the trained one {deep}; say which: "
                "layers=[0, 0, 1, 1], or layers=[0, None, 1, None]."
            )
        numbers = list(range(mine)) if numbers is None else numbers
        chosen[stack] = sources[label], _sources(stack, numbers, mine, deep, new)
        if not label:
            _refuse_types(larger, trained, chosen[stack][1])
    return chosen, new


def _refuse_types(larger: Any, trained: Any, numbers: Sequence[int]) -> None:
    """Raise for layers that become layers of another type (windowed or full attention)."""
    configs = (getattr(model, "config", None) for model in (larger, trained))
    ours, theirs = ([*(getattr(config, "layer_types", None) or [])] for config in configs)
    wanted = [theirs[n] for n in numbers] if len(theirs) > max(numbers) else []
    if ours and wanted and ours != wanted:
        raise ValueError(
            f"grow: the larger model's layers are {ours}, and those that they begin as {wanted}. "
            f"Make it with config.layer_types={wanted}."
        )


def _sources(
    stack: str, layers: Sequence[int | None], ours: int, theirs: int, new: list[str]
) -> list[int]:
    """Layers without None: a new one is a copy of the one before; its name is added to `new`."""
    given = [layer for layer in layers if layer is not None]
    if not given:
        raise ValueError("grow: layers names no layer of the trained model.")
    numbers, before = list[int](), given[0]
    for i, layer in enumerate(layers):
        before = before if layer is None else layer
        numbers.append(before)
        if layer is None:
            new.append(f"{stack}.{i}" if stack else str(i))
    return chosen_layers(numbers, "", ours, theirs, "grow", ("larger model", "trained model"))


def _is_new(name: str, new: Sequence[str]) -> bool:
    return any(name.startswith(f"{block}.") for block in new)


def _places(
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    chosen: Chosen,
    new: set[str],
    larger: nn.Module,
) -> list[Place]:
    """Where every tensor of the larger model comes from."""
    if isinstance(larger, nn.Sequential):
        numbers = chosen[""][1] if "" in chosen else list(range(len(larger)))
        split = [name.partition(".") for name in ours if name not in new]
        places = [Place(f"{i}.{n}", f"{numbers[int(i)]}.{n}", None) for i, _, n in split]
    else:
        places = [place_of(name, chosen) for name in ours]
    wanted = "A model of the trained one's parameters, none of them smaller, is expected."
    refuse_misfits("grow", places, ours, theirs, operator.ge, "the trained one's", wanted)
    return places


def _refuse_norms(
    modules: Mapping[str, nn.Module],
    places: Sequence[Place],
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
) -> None:
    """Raise for a norm over copies of units of which some have more than others."""
    for place in places:
        a, b = theirs[place.source].shape, ours[place.name].shape
        owner = owner_of(modules, place.name)
        uneven = any(y % x for x, y in zip(a, b, strict=True))
        if owner is not None and uneven and is_norm(owner):
            raise ValueError(
                f"grow: {place.name} grows from {a[-1]} to {b[-1]} units, and a norm over copies "
                "is that of the units only if each has as many: a multiple is expected."
            )


def _in_turn(group: Group) -> Tensor:
    """Which unit of theirs each of our units is: 0, 1, ..., 0, 1, ..."""
    return torch.arange(group.ours) % group.theirs


def _heads_in_turn(attention: Attention) -> tuple[Tensor, Tensor]:
    """The units of query and key heads, in turn, so that each query reads the key that it read.

    Raises:
      ValueError: the queries on each key are no multiple of what they were, nor a part.
    """
    (queries, keys, size), (our_queries, our_keys, _) = attention.theirs, attention.ours
    before, each = queries // keys, our_queries // our_keys
    parts = max(before // each, 1)
    if max(before, each) % min(before, each):
        raise ValueError(
            f"grow: {attention.queries.where} has {each} query heads on each key-value head; "
            f"{before} in the trained model, a multiple or a part of which is expected."
        )
    turn = torch.arange(our_keys) % (keys * parts)
    read, first = turn // parts, turn % parts * each
    mine = read[:, None] * before + (first[:, None] + torch.arange(each)) % before
    return units_of_heads(mine.flatten(), size), units_of_heads(read, size)


def _shares(units: Tensor, generator: torch.Generator) -> Tensor:
    """How the copies of a unit share what reads it: random numbers with the sum 1."""
    drawn = 0.5 + torch.rand(len(units), generator=generator, dtype=torch.float64)
    sums = torch.zeros(int(units.max()) + 1, dtype=torch.float64).index_add(0, units, drawn)
    return drawn / sums[units]


def _reading_axis(owner: nn.Module | None, name: str, weight: Tensor, model: Any) -> int | None:
    """The axis of a weight that reads units; None of biases, norms, tables."""
    if weight.ndim < 2 or owner is None or isinstance(owner, nn.Embedding):
        return None
    if type(owner).__name__ == "Conv1D" or isinstance(
        owner, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
    ):
        return 0
    if "experts" in name and weight.ndim == 3:
        return _reading_axis_of_experts(name, weight, model)
    convolves = isinstance(owner, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    last = name.partition("::")[0].rpartition(".")[2]
    return 1 if convolves or (weight.ndim == 2 and last in ("weight", "in_proj_weight")) else None


def _reading_axis_of_experts(name: str, weight: Tensor, model: Any) -> int:
    """Of the weights of all experts, `[experts, out, in]` or `[experts, in, out]`."""
    state = bare_state(model)
    prefix = name.rpartition(".")[0]
    gates = next(x for n, x in state.items() if n.startswith(prefix) and "gate_up" in n)
    return 2 if gates.shape[2] == model.config.get_text_config().hidden_size else 1
