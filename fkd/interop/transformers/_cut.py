"""Cut a student from its teacher: layers, and within them the most important heads and units."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ._layers import bare, bare_state, begun, chosen_layers, depth_of, stacks_of

_Model = TypeVar("_Model", bound=nn.Module)
_FUSED = (2, 3)
"""How many projections of one size one matrix may hold: gate and up; query, key and value."""


class Cut(NamedTuple):
    """An axis that is shorter in the student.

    Attributes:
      layer: of which stack and number; None: of the whole model, as the residual stream is.
      theirs, ours: its sizes.
    """

    layer: tuple[str, int] | None
    theirs: int
    ours: int


class Place(NamedTuple):
    """A parameter of the student and the one of the teacher that it is cut from."""

    name: str
    source: str
    layer: tuple[str, int] | None


def cut(
    student: _Model,
    teacher: nn.Module,
    *,
    layers: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    scores: Mapping[str, Tensor] | None = None,
) -> _Model:
    """A copy of a smaller student that begins as the most important part of its teacher.

    The student says how small: fewer layers, attention heads (of the same size) and key-value
    heads, a smaller intermediate or hidden size, fewer channels; for any two models whose
    parameters have the same names, of transformers, a `Sequential`, or your own. Every axis that
    is shorter keeps the units of the greatest score, in their order; axes that stand for the same
    units keep the same ones: within a layer those of its heads and of its intermediate
    units, over the whole model those of the hidden size. Heads are kept whole, and query heads
    with the key-value heads that they read.

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
      ValueError: a parameter of the student has none of its name in the teacher, or is larger.

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
    ours, theirs = bare_state(student), bare_state(teacher)
    scored = {bare(teacher, n): x for n, x in (scores or {}).items()}
    weights = {**theirs, **scored}
    places = _places(student, teacher, ours, theirs, layers)
    kept = _kept(places, ours, theirs, weights, squared=scores is None, student=student)
    start: dict[str, Tensor] = {}
    for place in places:
        tensor = theirs[place.source]
        for axis, (a, b) in enumerate(zip(tensor.shape, ours[place.name].shape, strict=True)):
            if a != b:
                tensor = tensor.index_select(axis, kept[cut_of(place, a, b, kept)])
        start[place.name] = tensor
    return begun(student, start)


def _places(
    student: nn.Module,
    teacher: nn.Module,
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    layers: Any,
) -> list[Place]:
    """Where every tensor of the student is cut from."""
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
    places = [_first_of_stack(place_of(name, chosen), theirs) for name in ours]
    wrong = misfits(places, ours, theirs, operator.le, "teacher's")
    if wrong:
        raise ValueError(
            f"cut: {wrong}. A student of the teacher's parameters, none of them larger, is "
            "expected."
        )
    return places


def misfits(
    places: Sequence[Place],
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    fits: Callable[[int, int], bool],
    whose: str,
) -> str:
    """The first tensors whose sizes, ours and theirs, do not fit on every axis, in words; or ""."""

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
    return f"{'; '.join(wrong[:4])} ({len(wrong)} in all)" if wrong else ""


def place_of(name: str, chosen: Mapping[str, tuple[str, list[int]]]) -> Place:
    """Where a tensor is cut from, with the layers chosen for each stack."""
    for stack, (source, numbers) in chosen.items():
        match = re.fullmatch(rf"{re.escape(stack)}\.(\d+)\.(.+)", name)
        if match is not None:
            i = int(match[1])
            return Place(name, f"{source}.{numbers[i]}.{match[2]}", (stack, i))
    return Place(name, name, None)


def _first_of_stack(place: Place, theirs: Mapping[str, Tensor]) -> Place:
    """What only the first layer of a stack has (T5's bias by position) is that of the first."""
    first = re.sub(r"\.\d+\.", ".0.", place.source, count=1)
    missing = place.layer is not None and place.source not in theirs
    return place._replace(source=first) if missing and first in theirs else place


def cut_of(place: Place, theirs: int, ours: int, kept: Mapping[Cut, Any]) -> Cut:
    """The group of units that an axis belongs to: of the model, where any of its kind is."""
    whole = Cut(None, theirs, ours)
    return whole if whole in kept else Cut(place.layer, theirs, ours)


def _kept(
    places: Sequence[Place],
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    scores: Mapping[str, Tensor],
    *,
    squared: bool,
    student: nn.Module,
) -> dict[Cut, Tensor]:
    """The units of every group that the student keeps."""
    outside: dict[Cut, Any] = {
        Cut(None, a, b): None
        for place in places
        if place.layer is None
        for a, b in zip(theirs[place.source].shape, ours[place.name].shape, strict=True)
        if a != b
    }
    totals: dict[Cut, Tensor] = {}
    for place in places:
        score = scores[place.source].double()
        score = score.square() if squared else score
        shapes = zip(theirs[place.source].shape, ours[place.name].shape, strict=True)
        for axis, (a, b) in enumerate(shapes):
            if a != b:
                group = cut_of(place, a, b, outside)
                rest = [i for i in range(score.ndim) if i != axis]
                total = score.sum(rest) if rest else score
                totals[group] = totals[group] + total if group in totals else total

    def greatest(group: Cut, whole: int) -> Tensor:
        blocks = totals[group].reshape(-1, whole).sum(-1)
        return blocks.topk(group.ours // whole).indices.sort().values

    return units_of(totals, sizes_of_heads(student), greatest)


def units_of(
    groups: Iterable[Cut], heads: tuple[int, int, int], choose: Callable[[Cut, int], Tensor]
) -> dict[Cut, Tensor]:
    """Which of their units each of our units is: fused axes as their parts, heads as a whole.

    Args:
      groups: the axes that differ.
      heads: from `sizes_of_heads`.
      choose: of a group, in blocks of so many units, which of their blocks are ours.
    """
    queries, keys, size = heads
    kept: dict[Cut, Tensor] = {}
    for group in sorted(groups, key=lambda g: g.ours):
        of_queries = size > 0 and group.ours == queries * size
        pairs = Cut(group.layer, group.theirs * keys // max(queries, 1), keys * size)
        if of_queries and keys != queries and pairs in kept:
            kept[group] = _reading(kept[pairs], size, queries // keys)
            continue
        fused = [m for m in _FUSED if group.theirs % m == 0 == group.ours % m]
        sizes = [(group.theirs // m, group.ours // m) for m in fused]
        candidates = [Cut(layer, *pair) for pair in sizes for layer in (group.layer, None)]
        part = next((candidate for candidate in candidates if candidate in kept), None)
        if part is not None:
            repeats = group.theirs // part.theirs
            kept[group] = torch.cat([kept[part] + i * part.theirs for i in range(repeats)])
            continue
        whole = size if of_queries or (size > 0 and group.ours == keys * size) else 1
        whole = whole if group.theirs % whole == 0 else 1
        blocks = choose(group, whole)
        kept[group] = (blocks[:, None] * whole + torch.arange(whole)).flatten()
    return kept


def _reading(keys: Tensor, size: int, each: int) -> Tensor:
    """The query units that read some key-value heads."""
    heads = keys[::size] // size
    queries = (heads[:, None] * each + torch.arange(each)).flatten()
    return (queries[:, None] * size + torch.arange(size)).flatten()


def sizes_of_heads(student: nn.Module) -> tuple[int, int, int]:
    """Query heads, key-value heads and the size of one, of a model's config, or zeros."""
    config = getattr(student, "config", None)
    queries = getattr(config, "num_attention_heads", 0) or 0
    if not queries:
        return 0, 0, 0
    keys = getattr(config, "num_key_value_heads", None) or queries
    size = getattr(config, "head_dim", None) or getattr(config, "hidden_size", 0) // queries
    return queries, keys, size
