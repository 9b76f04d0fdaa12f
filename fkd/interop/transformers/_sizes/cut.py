"""Cut a student from its teacher: layers, and within them the most important heads and units."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .._layers import bare, bare_state, begun, chosen_layers, depth_of, log_types, stacks_of
from .axes import Attention, Axes, Group, Place, axes_of, entries, units_in
from .fused import fused_in, joined, parted
from .heads import refuse_heads

_Model = TypeVar("_Model", bound=nn.Module)


def cut(
    student: _Model,
    teacher: nn.Module,
    *,
    layers: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    scores: Mapping[str, Tensor] | None = None,
) -> _Model:
    """A copy of a smaller student that begins as the most important part of its teacher.

    The student says how small: fewer layers, attention heads and key-value heads, a smaller
    intermediate or hidden size, fewer channels; for any two models whose parameters have the same
    names, of transformers, a `Sequential`, or your own. Every axis that is shorter keeps the units
    of the greatest score, in their order; axes that stand for the same units keep the same ones:
    within a layer those of its heads and of its intermediate units, over the whole model those of
    the hidden size, in a `Sequential` those of each layer. Heads are kept whole, and query heads
    with the key-value heads that they read; of smaller heads queries and keys keep the same units.
    Projections that are one matrix (GPT-2, Phi-3, GPT-NeoX, Falcon, gates) are cut as if they were
    several. Tables of positions keep the first ones.

    A unit's score is the sum of the scores of all weights that read or write it.

    Args:
      student: which stays as it is.
      teacher: which stays as it is.
      layers: one teacher layer for each student layer, as in `init_from_layers`; None: the models
        have the same number of layers.
      scores: of the teacher's parameters by name, in their shapes: squares of weight times
        gradient, say, summed over some batches. None: squares of the weights.

    Returns:
      A new student.

    Raises:
      ValueError: a parameter of the student has none of its name in the teacher, or is larger;
        other labels, another vocabulary; heads that cannot be what the teacher's are.

    Example:
      >>> teacher = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
      >>> student = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
      >>> with torch.no_grad():
      ...     for i in (0, 2):
      ...         _ = teacher[0].weight[i].zero_(), teacher[0].bias[i].zero_()
      ...         _ = teacher[2].weight[:, i].zero_()
      >>> x = torch.randn(3, 2)
      >>> torch.allclose(cut(student, teacher)(x), teacher(x))
      True

    Reference:
      Li et al., Pruning Filters for Efficient ConvNets, arXiv:1608.08710; Michel et al., Are
      Sixteen Heads Really Better than One?, arXiv:1905.10650.
    """
    refuse_heads("cut", student, teacher)
    parts = fused_in(student, bare_state(student)), fused_in(teacher, bare_state(teacher))
    ours, theirs = parted(bare_state(student), parts[0]), parted(bare_state(teacher), parts[1])
    places = _places(student, teacher, ours, theirs, layers)
    axes = axes_of("cut", (student, teacher), places, ours, theirs)
    totals = _totals(places, axes, parted(_scores(teacher, scores), parts[1]))
    kept = units_in(
        axes,
        lambda group: _greatest(totals[group], group.ours),
        lambda attention: _best_heads(attention, totals),
    )
    start: dict[str, Tensor] = {}
    for place in places:
        tensor = theirs[place.source]
        for i in range(tensor.ndim):
            if (place.name, i) in axes.axes:
                axis = axes.axes[place.name, i]
                tensor = tensor.index_select(i, entries(axis, kept[axis.group]).to(tensor.device))
        start[place.name] = tensor
    return begun(student, joined(start, parts[0]))


def _places(
    student: nn.Module,
    teacher: nn.Module,
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    layers: Any,
) -> list[Place]:
    """Where every tensor of the student is cut from."""
    if isinstance(student, nn.Sequential) and isinstance(teacher, nn.Sequential):
        return _fitting(_in_a_row(student, teacher, ours, layers), ours, theirs)
    chosen: dict[str, tuple[str, list[int]]] = {}
    stacks, sources = stacks_of(student), stacks_of(teacher)
    for label, stack in stacks.items():
        if label in sources:
            mine, deep = depth_of(ours, stack), depth_of(theirs, sources[label])
            numbers = list(range(mine)) if layers is None and mine == deep else layers
            if numbers is None:
                raise ValueError(
                    f"cut: the student has {mine} layers and the teacher {deep}; say which: "
                    "layers=[0, 2, 4]."
                )
            chosen[stack] = sources[label], chosen_layers(numbers, label, mine, deep, "cut")
            if not label:
                log_types(student, teacher, chosen[stack][1], "cut")
    places = [place_of(name, chosen) for name in ours]
    return _fitting([_first_of_stack(place, theirs) for place in places], ours, theirs)


def _first_of_stack(place: Place, theirs: Mapping[str, Tensor]) -> Place:
    """What only the first layer of a stack has (T5's bias by position) is that of the first."""
    first = re.sub(r"\.\d+\.", ".0.", place.source, count=1)
    missing = place.layer is not None and place.source not in theirs
    return place._replace(source=first) if missing and first in theirs else place


def _in_a_row(
    student: nn.Sequential, teacher: nn.Sequential, ours: Mapping[str, Tensor], layers: Any
) -> list[Place]:
    """Where every tensor of a `Sequential` is cut from: from layers by their place."""
    mine, deep = [list(dict(m.named_children())) for m in (student, teacher)]
    if layers is None and len(mine) < len(deep) and all(map(str.isdigit, mine)):
        raise ValueError(
            f"cut: the student has {len(mine)} layers and the teacher {len(deep)}; say which: "
            "layers=[0, 2, 4]."
        )
    if layers is None:
        return [Place(name, name, None) for name in ours]
    numbers = chosen_layers(layers, "", len(mine), len(deep), "cut")
    source = {name: deep[number] for name, number in zip(mine, numbers, strict=True)}
    split = [name.partition(".") for name in ours]
    return [Place(f"{i}.{rest}", f"{source[i]}.{rest}", None) for i, _, rest in split]


def _fitting(
    places: list[Place], ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]
) -> list[Place]:
    wanted = "A student of the teacher's parameters, none of them larger, is expected."
    refuse_misfits("cut", places, ours, theirs, operator.le, "teacher's", wanted)
    return places


def refuse_misfits(
    caller: str,
    places: Sequence[Place],
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    fits: Callable[[int, int], bool],
    whose: str,
    wanted: str,
) -> None:
    """Raise for tensors whose sizes, ours and theirs, do not fit on every axis."""

    def fit(place: Place) -> bool:
        if place.source not in theirs:
            return False
        a, b = ours[place.name].shape, theirs[place.source].shape
        return len(a) == len(b) and all(map(fits, a, b))

    wrong = [
        f"{p.name} {tuple(ours[p.name].shape)}, {whose} "
        + (f"{tuple(theirs[p.source].shape)}" if p.source in theirs else "is missing")
        for p in places
        if not fit(p)
    ]
    if wrong:
        raise ValueError(f"{caller}: {'; '.join(wrong[:4])} ({len(wrong)} in all). {wanted}")


def place_of(name: str, chosen: Mapping[str, tuple[str, list[int]]]) -> Place:
    """Where a tensor is cut from, with the layers chosen for each stack."""
    for stack, (source, numbers) in chosen.items():
        match = re.fullmatch(rf"{re.escape(stack)}\.(\d+)\.(.+)", name)
        if match is not None:
            i = int(match[1])
            return Place(name, f"{source}.{numbers[i]}.{match[2]}", (stack, i))
    return Place(name, name, None)


def _scores(teacher: nn.Module, scores: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """The scores of all parameters by bare name, 0 of those that have none."""
    state = bare_state(teacher)
    if scores is None:
        return {name: x.double().square() for name, x in state.items()}
    scored = {bare(teacher, name): x for name, x in scores.items()}
    wrong = [
        f"{name} {tuple(x.shape)}"
        for name, x in scored.items()
        if name not in state or x.shape != state[name].shape
    ]
    if wrong:
        raise ValueError(
            f"cut: scores of {wrong[0]}; names and shapes of the teacher's parameters are "
            "expected, as in {n: p.grad.square() for n, p in teacher.named_parameters()}."
        )
    return {name: scored.get(name, torch.zeros_like(x)) for name, x in state.items()}


def _totals(
    places: Sequence[Place], axes: Axes, scores: Mapping[str, Tensor]
) -> dict[Group, Tensor]:
    """The score of every unit: of all weights that read or write it."""
    totals: dict[Group, Tensor] = {}
    for place in places:
        score = scores[place.source].double().cpu()
        for i in range(score.ndim):
            axis = axes.axes.get((place.name, i))
            if axis is None or axis.per > 1:
                continue
            rest = [j for j in range(score.ndim) if j != i]
            total = score.sum(rest) if rest else score
            total = total.reshape(-1, axis.each).sum(1)
            before = totals.get(axis.group)
            totals[axis.group] = total if before is None else before + total
    return totals


def _greatest(scores: Tensor, n: int) -> Tensor:
    """The places of the n greatest scores, in their order."""
    return scores.topk(n).indices.sort().values


def _best_heads(attention: Attention, totals: Mapping[Group, Tensor]) -> tuple[Tensor, Tensor]:
    """The units of the best heads: keys with the queries that read them.

    Raises:
      ValueError: a key is read by more queries in the student.
    """
    (queries, keys, size), (our_queries, our_keys, our_size) = attention.theirs, attention.ours
    each, ours = queries // keys, our_queries // our_keys
    if ours > each:
        raise ValueError(
            f"cut: {attention.queries.where} has {our_queries} query heads on {our_keys} key-value "
            f"heads, {ours} on each; the teacher's {queries} on {keys} are {each} on each. At most "
            "as many are expected."
        )
    nothing = torch.zeros(())
    of_queries = totals.get(attention.queries, nothing).expand(queries * size)
    of_keys = totals.get(attention.keys, nothing).expand(keys * size)
    by_query = of_queries.reshape(keys, each, size)
    grouped = attention.queries != attention.keys
    by_key = by_query.sum(1) + (of_keys.reshape(keys, size) if grouped else 0)
    kept = _greatest(by_key.sum(1), our_keys)
    read = by_query[kept].sum(2).topk(ours).indices.sort().values
    inside = by_key[kept].topk(our_size).indices.sort().values
    key_units = (kept[:, None] * size + inside).flatten()
    heads = kept[:, None] * each + read
    query_units = (heads[:, :, None] * size + inside[:, None]).flatten()
    return query_units, key_units
