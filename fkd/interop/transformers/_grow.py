"""Grow a model from a smaller one that is trained: more layers, more heads and units."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ._cut import Cut, Place, cut_of, misfits, place_of, sizes_of_heads, units_of
from ._layers import (
    bare,
    bare_state,
    begun,
    chosen_layers,
    depth_of,
    layers_of_stack,
    stacks_of,
)

_Model = TypeVar("_Model", bound=nn.Module)
_NORMS = ("norm", "layernorm", "rmsnorm")
_ENDS = re.compile(
    r"(^|\.)(o_proj|out_proj|down_proj|c_proj|fc2|lin2|linear2|w2|wo|dense_4h_to_h|proj_out|fc_out"
    r"|(attention\.)?output\.dense)$"
)
"""The linear layers that write into the residual stream, at the ends of a block's branches."""


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
    intermediate units, over the whole model the hidden size.

    Deeper: each layer of the larger model is a layer of the smaller (`[0, 0, 1, 1]` repeats
    each, which does not compute the same), or new (`[0, None, 1, None]`): a copy of the layer
    before whose branches add nothing, so that the model computes what the smaller one does. In a
    `Sequential` a new layer is the identity.

    Any two models whose parameters have the same names, of transformers, a `Sequential`, or your
    own. A trained student grows into its teacher's size, a run of progressive growing is a row
    of `fkd.stages`.

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
        hidden size is no multiple where a norm is taken over it; tied embeddings whose width
        grows; a new layer whose norms come after its branches.

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
      LLaMA Pro, arXiv:2401.02415; Gong et al., Efficient Training of BERT by Progressively
      Stacking, ICML 2019.
    """
    ours, theirs = bare_state(larger), bare_state(trained)
    chosen, new = _chosen(larger, trained, ours, theirs, layers)
    places = _places(ours, theirs, chosen, {n for n in ours if _is_new(n, new)}, larger)
    widening = {
        cut for place in places for cut in _cuts(place, ours[place.name], theirs[place.source])
    }
    whole = {cut: None for cut in widening if cut.layer is None}
    groups = [c for c in widening if c.layer is None or Cut(None, *c[1:]) not in whole]
    modules = {bare(larger, n): m for n, m in larger.named_modules()}
    _refuse(larger, modules, places, ours, theirs, whole)
    units = units_of(groups, sizes_of_heads(larger), _in_turn)
    generator = torch.Generator().manual_seed(seed)
    shares = {group: _shares(units[group], generator) for group in sorted(groups, key=str)}
    start: dict[str, Tensor] = {}
    for place in places:
        tensor, owner = theirs[place.source], modules.get(place.name.rpartition(".")[0])
        for axis, (a, b) in enumerate(zip(tensor.shape, ours[place.name].shape, strict=True)):
            if a == b:
                continue
            group = cut_of(place, a, b, units)
            tensor = tensor.index_select(axis, units[group].to(tensor.device))
            if axis == _reading_axis(owner, tensor):
                shape = [-1 if i == axis else 1 for i in range(tensor.ndim)]
                tensor = tensor * shares[group].to(tensor).reshape(shape)
        start[place.name] = tensor
    result = begun(larger, start)
    for block in new:
        _add_nothing(dict(result.named_modules())[_full(result, block)], block)
    return result


def _full(model: nn.Module, name: str) -> str:
    return next(n for n, _ in model.named_modules() if bare(model, n) == name)


Chosen = dict[str, tuple[str, list[int]]]


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
    return chosen, new


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
    wrong = misfits(places, ours, theirs, operator.ge, "the trained one's")
    if wrong:
        raise ValueError(
            f"grow: {wrong}. A model of the trained one's parameters, none of them smaller, is "
            "expected."
        )
    return places


def _cuts(place: Place, ours: Tensor, theirs: Tensor) -> list[Cut]:
    pairs = zip(theirs.shape, ours.shape, strict=True)
    return [Cut(place.layer, a, b) for a, b in pairs if a != b]


def _refuse(
    larger: nn.Module,
    modules: Mapping[str, nn.Module],
    places: Sequence[Place],
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    whole: Mapping[Cut, None],
) -> None:
    """Raise what cannot be grown so that the function stays."""
    head: Any = getattr(larger, "get_output_embeddings", lambda: None)()
    table: Any = (
        getattr(larger, "get_input_embeddings", lambda: None)() if head is not None else None
    )
    tied = table is not None and getattr(head, "weight", None) is table.weight
    if tied and whole:
        raise ValueError(
            "grow: embeddings and head are one tensor, whose copies of a unit would count twice "
            "in the head. Make the larger model with config.tie_word_embeddings=False."
        )
    for place in places:
        a, b = theirs[place.source].shape, ours[place.name].shape
        owner = modules.get(place.name.rpartition(".")[0])
        if isinstance(owner, nn.Embedding) and a[0] != b[0]:
            raise ValueError(
                f"grow: {place.name} has {b[0]} entries for {a[0]}; a table of as many is expected."
            )
        kind = type(owner).__name__.lower()
        if (
            "batch" not in kind
            and kind.endswith(_NORMS)
            and any(y % x for x, y in zip(a, b, strict=True))
        ):
            raise ValueError(
                f"grow: {place.name} grows from {a[-1]} to {b[-1]} units, and a norm over copies "
                "is that of the units only if each has as many: a multiple is expected."
            )
    queries, _, size = sizes_of_heads(larger)
    hidden = getattr(getattr(larger, "config", None), "hidden_size", 0)
    for group in whole:
        if queries and group.ours == hidden and group.theirs % size:
            raise ValueError(
                f"grow: heads of size {size} in the larger model; the trained one's hidden size "
                f"{group.theirs} has no such heads. Give the larger model more heads, not larger "
                "ones."
            )


def _in_turn(group: Cut, whole: int) -> Tensor:
    """Which block of theirs each of our blocks is: 0, 1, ..., 0, 1, ..."""
    return torch.arange(group.ours // whole) % (group.theirs // whole)


def _shares(units: Tensor, generator: torch.Generator) -> Tensor:
    """How the copies of a unit share what reads it: random numbers with the sum 1."""
    drawn = 0.5 + torch.rand(len(units), generator=generator, dtype=torch.float64)
    sums = torch.zeros(int(units.max()) + 1, dtype=torch.float64).index_add(0, units, drawn)
    return drawn / sums[units]


def _reading_axis(owner: nn.Module | None, weight: Tensor) -> int | None:
    """The axis of a weight that reads units; None of biases, norms, tables."""
    if weight.ndim < 2 or owner is None or isinstance(owner, nn.Embedding):
        return None
    if type(owner).__name__ == "Conv1D" or isinstance(
        owner, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
    ):
        return 0
    linear = isinstance(owner, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return 1 if linear else None


@torch.no_grad()
def _add_nothing(block: nn.Module, name: str) -> None:
    """Make a new block the identity.

    Raises:
      ValueError: it is no residual block whose norms come first, and no layer that can be one.
    """
    if not any(True for _ in block.children()):
        _identity(block, name)
        return
    modules = dict(block.named_modules())
    ends = [n for n in modules if _ENDS.search(n)]
    after = getattr(block, "norm_first", True) is False or any(
        n.rpartition(".")[0] == end.rpartition(".")[0] != "" and _is_norm(m)
        for end in ends
        for n, m in modules.items()
    )
    if not ends or after or type(block).__module__.endswith("distilbert"):
        why = (
            "its norms come after its branches" if ends else "the ends of its branches are unknown"
        )
        raise ValueError(
            f"grow: layer {name} ({type(block).__name__}) cannot begin as one that adds nothing, "
            f"since {why}. Repeat a layer instead: layers=[0, 0, 1, 1]."
        )
    for end in ends:
        for p in modules[end].parameters(recurse=False):
            p.zero_()


def _is_norm(module: nn.Module) -> bool:
    return type(module).__name__.lower().endswith(_NORMS)


def _identity(layer: nn.Module, name: str) -> None:
    if not any(True for _ in layer.parameters()):
        if not isinstance(layer, nn.ReLU | nn.ReLU6 | nn.Hardtanh | nn.Identity | nn.Dropout):
            raise ValueError(
                f"grow: layer {name} ({layer}) does not give what it gave when it is applied "
                "twice; a new layer is followed by a ReLU, or by nothing."
            )
        return
    if isinstance(layer, nn.Linear) and layer.in_features == layer.out_features:
        nn.init.eye_(layer.weight)
    elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and _keeps_places(layer):
        nn.init.dirac_(layer.weight)
    else:
        raise ValueError(
            f"grow: layer {name} ({layer}) cannot begin as the identity; a Linear or a "
            "convolution with as many outputs as inputs, of stride 1 and padding to the same size, "
            "is expected."
        )
    if layer.bias is not None:
        layer.bias.zero_()


def _keeps_places(conv: Any) -> bool:
    same = all(
        2 * p == d * (k - 1)
        for p, d, k in zip(conv.padding, conv.dilation, conv.kernel_size, strict=True)
    ) if not isinstance(conv.padding, str) else conv.padding == "same"  # fmt: skip
    odd = all(k % 2 for k in conv.kernel_size)
    return (
        conv.in_channels == conv.out_channels
        and set(conv.stride) == {1}
        and conv.groups == 1
        and same
        and odd
    )
