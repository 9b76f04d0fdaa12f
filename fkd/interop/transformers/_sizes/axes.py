"""Which units each axis of a parameter stands for, of two models that differ in their sizes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._layers import bare
from .chain import signals_of
from .heads import Heads, attention_of, heads_of

_QUERY = re.compile(
    r"(^|\.)((pos_)?(q|q_proj|query|q_lin|query_proj)|to_q|wq)(_norm|_layernorm)?(\.|$)"
)
_KEY = re.compile(
    r"(^|\.)((pos_)?([kv]|[kv]_proj|key|value|[kv]_lin|key_proj|value_proj)|to_[kv]|w[kv])"
    r"(_norm|_layernorm)?(\.|$)"
)
_OUT = re.compile(
    r"(^|\.)(o|o_proj|out_proj|out_lin|output\.dense|dense|c_proj|Wo|wo|proj|to_out)(\.0)?\.weight$"
)

_POSITIONS = re.compile(r"pos|wpe", re.IGNORECASE)


class Place(NamedTuple):
    """A parameter of ours, and the one of theirs that it comes from.

    Attributes:
      layer: of which stack and number; None: outside of the layers.
    """

    name: str
    source: str
    layer: tuple[str, int] | None


class Group(NamedTuple):
    """Units that come and go together, wherever an axis stands for them.

    Attributes:
      where: what they belong to: a layer, an attention module; None: the whole model.
      theirs, ours: how many.
    """

    where: str | None
    theirs: int
    ours: int


class Axis(NamedTuple):
    """What an axis stands for.

    Attributes:
      group: its units.
      each: entries of a unit, one after the other (the places of a channel that was flattened).
      per: units of an entry (those of a head).
    """

    group: Group
    each: int = 1
    per: int = 1


class Attention(NamedTuple):
    """The heads of an attention module: which units are a head's, and which keys a query reads.

    Attributes:
      queries, keys: their units; the same group where each query has a key of its own.
      theirs, ours: numbers of query heads, of key heads, and the size of a head.
    """

    queries: Group
    keys: Group
    theirs: tuple[int, int, int]
    ours: tuple[int, int, int]


class Axes(NamedTuple):
    """What all axes that differ stand for.

    Attributes:
      axes: by parameter of ours and axis.
      attentions: by the groups of their units.
      tables: rows of tables of positions, of which the first are the same ones.
    """

    axes: dict[tuple[str, int], Axis]
    attentions: dict[Group, Attention]
    tables: set[Group]


def axes_of(
    caller: str,
    models: tuple[nn.Module, nn.Module],
    places: Sequence[Place],
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
) -> Axes:
    """The axes that differ between two models of one structure.

    Args:
      caller: for messages.
      models: ours, and theirs.
      places: of every parameter (and part of a fused one) of ours.
      ours, theirs: by bare name.

    Raises:
      ValueError: units that cannot be matched: entries of a vocabulary, labels, heads whose
        layout is not known.
    """
    reader = _Reader(caller, models, places, ours, theirs)
    result = Axes({}, {}, set())
    for place in places:
        for axis, a, b in reader.differing(place):
            result.axes[place.name, axis] = reader.axis(place, axis, a, b, result)
    return result


def names_of(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a model by bare name."""
    return {bare(model, name): module for name, module in model.named_modules()}


def owner_of(modules: Mapping[str, nn.Module], name: str) -> Any:
    """The module that has a parameter."""
    return modules.get(name.partition("::")[0].rpartition(".")[0])


def writing_axis(owner: nn.Module | None, x: Tensor) -> int:
    """The axis of a weight or bias that is what the layer gives."""
    return x.ndim - 1 if type(owner).__name__ == "Conv1D" else 0


class _Reader:
    """What is known of two models while their axes are read."""

    def __init__(
        self,
        caller: str,
        models: tuple[nn.Module, nn.Module],
        places: Sequence[Place],
        ours: Mapping[str, Tensor],
        theirs: Mapping[str, Tensor],
    ) -> None:
        self.caller, self.ours, self.theirs = caller, ours, theirs
        self.modules = names_of(models[0])
        self.heads = heads_of(models[0]), heads_of(models[1])
        self.signals = signals_of(models[0])
        self.source = {place.name: place.source for place in places}
        self.config: tuple[Any, Any] = tuple(getattr(m, "config", None) for m in models)  # pyright: ignore[reportAttributeAccessIssue]
        self.whole = {
            (a, b)
            for place in places
            if place.layer is None and attention_of(place.name) is None
            for axis, a, b in self.differing(place)
            if not self._is_table(place, axis)
        }
        self.uneven = _uneven(places, theirs)
        self.shared = _shared_tables(places)
        self.keys = self._rows_of_keys()

    def differing(self, place: Place) -> list[tuple[int, int, int]]:
        """The axes of a parameter whose sizes differ, with theirs and ours."""
        shapes = zip(self.theirs[place.source].shape, self.ours[place.name].shape, strict=True)
        return [(axis, a, b) for axis, (a, b) in enumerate(shapes) if a != b]

    def axis(self, place: Place, axis: int, a: int, b: int, result: Axes) -> Axis:
        """What an axis stands for."""
        if self.signals is not None:
            return self._of_signal(place, axis, a, b)
        if self._is_table(place, axis):
            return self._of_table(place, a, b, result)
        of_head = self._of_head(place, axis, a, b, result)
        if of_head is not None:
            return of_head
        self._raise_labels(place, axis, a, b)
        x, groups = self.ours[place.name], getattr(owner_of(self.modules, place.name), "groups", 1)
        if groups > 1 and x.ndim > 1 and (axis == 1 or x.shape[1] > 1):
            raise ValueError(
                f"{self.caller}: {place.name} is a convolution of {groups} groups, whose channels "
                "cannot be chosen one by one. Give both models the same number of channels there."
            )
        inside = (a, b) not in self.whole and place.layer is not None
        if inside and place.layer is not None and place.layer[0] not in self.uneven:
            return Axis(Group(f"{place.layer[0]}.{place.layer[1]}", a, b))
        return Axis(Group(None, a, b))

    def _of_signal(self, place: Place, axis: int, a: int, b: int) -> Axis:
        assert self.signals is not None
        written = self.signals[place.name, axis]
        weight = f"{written}.weight"
        if weight not in self.source:
            return Axis(Group(written, a, b))
        owner: Any = self.modules[written]
        at = 1 if "Transpose" in type(owner).__name__ else 0
        widths = self.theirs[self.source[weight]].shape[at], self.ours[weight].shape[at]
        each = [x // width for x, width in zip((a, b), widths, strict=True)]
        if each[0] != each[1] or each[0] * widths[0] != a or each[1] * widths[1] != b:
            raise ValueError(
                f"{self.caller}: {place.name} reads {b} entries for {a}, of {widths[1]} channels "
                f"for {widths[0]}; as many entries of each channel are expected in both."
            )
        return Axis(Group(written, *widths), each[0])

    def _is_table(self, place: Place, axis: int) -> bool:
        return axis == 0 and isinstance(owner_of(self.modules, place.name), nn.Embedding)

    def _of_table(self, place: Place, a: int, b: int, result: Axes) -> Axis:
        if b > a or not _POSITIONS.search(place.name):
            known = _POSITIONS.search(place.name)
            more = "" if known else " What an entry means is the same in both models then."
            raise ValueError(
                f"{self.caller}: {place.name} has {b} entries for {a}; a table of as many is "
                f"expected.{more}"
            )
        group = Group(place.name, a, b)
        result.tables.add(group)
        return Axis(group)

    def _raise_labels(self, place: Place, axis: int, a: int, b: int) -> None:
        """Raise for a row of the head: which of the teacher's labels are the student's?"""
        labels = tuple(getattr(c, "num_labels", None) for c in reversed(self.config))
        if place.layer is None and axis == 0 and labels == (a, b):
            raise ValueError(
                f"{self.caller}: {place.name} has {b} labels for {a}, and which ones is not known. "
                "Give both models the same labels, and exchange the head afterwards."
            )

    def _of_head(self, place: Place, axis: int, a: int, b: int, result: Axes) -> Axis | None:
        inside, before = attention_of(place.name), attention_of(place.source)
        if inside is None or before is None:
            return None
        known = self.heads[1](before[0]), self.heads[0](inside[0])
        if known[0] is None or known[1] is None:
            return None
        attention = self._attention(inside[0], known[0], known[1])
        if attention is None:
            return self._or_raise(place, axis, a, b)
        rest, part = inside[1], place.name.partition("::")[2]
        owner = owner_of(self.modules, place.name)
        x = self.ours[place.name]
        written = axis == writing_axis(owner, x)
        reads = axis == (0 if type(owner).__name__ == "Conv1D" else x.ndim - 1)
        if written and (part == "q" or (not part and _QUERY.search(rest))):
            group = attention.queries
        elif written and (part in ("k", "v") or (not part and _KEY.search(rest))):
            group = attention.keys
        elif reads and x.ndim == 2 and _OUT.search(rest):
            group = attention.queries
        elif (a, b) == (attention.theirs[0], attention.ours[0]) and (a, b) not in self.whole:
            result.attentions[attention.queries] = attention
            return Axis(attention.queries, per=attention.theirs[2])
        else:
            return self._or_raise(place, axis, a, b)
        if (a, b) != (group.theirs, group.ours):
            return self._or_raise(place, axis, a, b)
        result.attentions[group] = attention
        return Axis(group)

    def _or_raise(self, place: Place, axis: int, a: int, b: int) -> None:
        """None where an axis of an attention module is the hidden size; else nothing is known."""
        if (a, b) not in self.whole:
            shapes = tuple(self.theirs[place.source].shape), tuple(self.ours[place.name].shape)
            raise ValueError(
                f"{self.caller}: axis {axis} of {place.name} ({shapes[1]} for {shapes[0]}): how "
                "the heads of this attention are laid out in it is not known. Give both models "
                "the same heads."
            )

    def _attention(self, name: str, theirs: Heads, ours: Heads) -> Attention | None:
        """The heads of an attention module, whose keys are counted in its weights."""
        if name not in self.keys:
            return None
        keys = self.keys[name]
        a, b = (theirs.queries, keys[0] // theirs.size), (ours.queries, keys[1] // ours.size)
        if any(n * h.size != k for n, h, k in zip((a[1], b[1]), (theirs, ours), keys, strict=True)):
            return None
        where = _starred(name) if _starred(name) in self.shared else name
        queries = Group(where, a[0] * theirs.size, b[0] * ours.size)
        if a[0] == a[1] and b[0] == b[1]:
            grouped = queries
        else:
            grouped = Group(f"{where}:keys", a[1] * theirs.size, b[1] * ours.size)
        return Attention(queries, grouped, (*a, theirs.size), (*b, ours.size))

    def _rows_of_keys(self) -> dict[str, tuple[int, int]]:
        """How many rows the keys of every attention module have, theirs and ours."""
        rows: dict[str, tuple[int, int]] = {}
        for key, x in self.ours.items():
            inside, part = attention_of(key), key.partition("::")[2]
            if inside is None or "norm" in key or "pos_" in inside[1]:
                continue
            if part == "k" or (not part and _KEY.search(inside[1])):
                axis = writing_axis(owner_of(self.modules, key), x)
                rows.setdefault(
                    inside[0], (self.theirs[self.source[key]].shape[axis], x.shape[axis])
                )
        return rows


def _uneven(places: Sequence[Place], theirs: Mapping[str, Tensor]) -> set[str]:
    """The stacks whose layers differ in their sizes (stages), so that one reads another's."""
    shapes: dict[str, dict[str, set[tuple[int, ...]]]] = {}
    for place in places:
        if place.layer is not None:
            stack, i = place.layer
            rest = place.name.removeprefix(f"{stack}.{i}.")
            sizes = shapes.setdefault(stack, {}).setdefault(rest, set())
            sizes.add(tuple(theirs[place.source].shape))
    return {stack for stack, rests in shapes.items() if any(len(s) > 1 for s in rests.values())}


def _shared_tables(places: Sequence[Place]) -> set[str]:
    """The attention modules of which one layer has a bias by head for all layers (T5's)."""
    tables: dict[str, set[int]] = {}
    layers: dict[str, set[int]] = {}
    for place in places:
        inside = attention_of(place.name)
        if place.layer is not None and inside is not None:
            name = _starred(inside[0])
            layers.setdefault(name, set()).add(place.layer[1])
            if "relative_attention_bias" in inside[1]:
                tables.setdefault(name, set()).add(place.layer[1])
    return {name for name, having in tables.items() if having != layers[name]}


def _starred(name: str) -> str:
    """An attention module in any layer."""
    return re.sub(r"\.\d+\.", ".*.", name, count=1)


def units_in(
    axes: Axes,
    choose: Callable[[Group], Tensor],
    choose_heads: Callable[[Attention], tuple[Tensor, Tensor]],
) -> dict[Group, Tensor]:
    """Which of their units each of our units is.

    Args:
      axes: from `axes_of`.
      choose: the units of a group.
      choose_heads: the units of queries and of keys of an attention module.
    """
    units: dict[Group, Tensor] = {}
    for axis in axes.axes.values():
        group = axis.group
        if group in units:
            continue
        attention = axes.attentions.get(group)
        if attention is not None:
            units[attention.queries], units[attention.keys] = choose_heads(attention)
        elif group in axes.tables:
            units[group] = torch.arange(group.ours)
        else:
            units[group] = choose(group)
    return units


def entries(axis: Axis, units: Tensor) -> Tensor:
    """The entries of an axis that some units are."""
    units = units[:: axis.per] // axis.per
    return (units[:, None] * axis.each + torch.arange(axis.each)).flatten()


def units_of_heads(heads: Tensor, size: int) -> Tensor:
    """The units of some heads."""
    return (heads[:, None] * size + torch.arange(size)).flatten()
