"""What makes a grown model compute what the trained one does, and the proof that it does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from .._layers import bare
from .alike import Seen, difference, embeddings_of, factor, head_of, made_up, seen_in, tolerance
from .deeper import add_nothing, add_nothing_after, ends_of, norms_come_after, scale


@dataclass(frozen=True)
class Grown:
    """A model whose tensors are those of a trained one, on copies of its units.

    Attributes:
      model: its new blocks are still copies of the blocks before.
      trained: what it has to compute.
      new: the bare names of new blocks.
      hidden: which unit of the trained hidden size each unit is, and its share; None: it is as it
        was.
      exact: whether its other blocks are all those of the trained one, in their order.
    """

    model: Any
    trained: nn.Module
    new: Sequence[str]
    hidden: tuple[Tensor, Tensor] | None
    exact: bool


def grown_alike(grown: Grown) -> Any:
    """The grown model, whose new blocks add nothing and whose head reads what it has to.

    Raises:
      ValueError: no way is known in which it computes what the trained one does.
    """
    inputs = made_up(grown.trained)
    before = None if inputs is None else seen_in(grown.trained, inputs)
    if inputs is None or before is None:
        return _unseen(grown)
    off = float("inf")
    ways = _ways(grown)
    for i, way in enumerate(ways):
        model = copy.deepcopy(grown.model) if i + 1 < len(ways) else grown.model
        if not way(model):
            continue
        if grown.hidden is not None:
            _fit_table_and_head(model, grown, inputs, before)
        after = seen_in(model, inputs)
        theirs = None if after is None else _comparable(before.output, after.output, grown)
        if after is None or theirs is None or not grown.exact:
            return model
        off = min(off, difference(after.output, theirs))
        if off < tolerance(theirs.dtype) or not bool(theirs.isfinite().all()):
            return model
    kind = type(grown.model).__name__
    if grown.new:
        _raise_ends(grown, off)
    raise ValueError(
        f"grow: the larger {kind} would not compute what the trained one does (its output differs "
        f"by {off:.1%} of the largest value), since something in it depends on the sizes that "
        "differ: a slope for each head, a factor of the hidden size, a table for one layer. Grow "
        "other sizes: layers alone, or the intermediate size alone."
    )


Way = Callable[[Any], bool]


def _ways(grown: Grown) -> list[Way]:
    """How new blocks may be made to add nothing; each says whether it could be done."""
    if not grown.new:
        return [lambda model: True]
    after = any(norms_come_after(block) for block in _blocks(grown.model, grown.new))
    ways: list[Way] = [lambda model: _before(model, grown), lambda model: _after(model, grown)]
    return ways[::-1] if after else ways


def _before(model: nn.Module, grown: Grown) -> bool:
    for block in _blocks(model, grown.new):
        if not ends_of(block):
            return False
        add_nothing(block)
    return True


def _after(model: nn.Module, grown: Grown) -> bool:
    pairs = list(zip(_blocks(model, grown.new), _blocks(model, _previous(grown)), strict=False))
    known = len(pairs) == len(grown.new) and all(ends_of(block) for block, _ in pairs)
    return known and all(add_nothing_after(block, previous) for block, previous in pairs)


def _previous(grown: Grown) -> list[str]:
    """The block before each new one; "" of a first one."""
    split = [name.rpartition(".") for name in grown.new]
    return [f"{stack}.{int(i) - 1}" if int(i) else "" for stack, _, i in split]


def _blocks(model: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    modules = {bare(model, name): module for name, module in model.named_modules() if name}
    return [modules[name] for name in names if name in modules]


def _unseen(grown: Grown) -> Any:
    """The same where the models cannot be run: as far as their names say."""
    if grown.hidden is not None and _is_tied(grown.model):
        _raise_tied(grown)
    if grown.new and not _ways(grown)[0](grown.model):
        _raise_ends(grown)
    return grown.model


def _raise_ends(grown: Grown, off: float = float("inf")) -> NoReturn:
    block = _blocks(grown.model, grown.new)[0]
    if not ends_of(block):
        why = "the ends of its branches are unknown"
    elif int(grown.new[0].rpartition(".")[2]) == 0:
        why = "no block before it ends in a norm, and its own norms come after its branches"
    else:
        why = f"the output of the model would change by {off:.1%} of its largest value"
    raise ValueError(
        f"grow: layer {grown.new[0]} ({type(block).__name__}) cannot begin as one that adds "
        f"nothing, since {why}. Repeat a layer instead: layers=[0, 0, 1, 1]."
    )


def _comparable(theirs: Tensor, ours: Tensor, grown: Grown) -> Tensor | None:
    """What the grown model has to give."""
    if theirs.shape == ours.shape:
        return theirs
    if grown.hidden is not None and ours.shape[-1] == len(grown.hidden[0]):
        return theirs[..., grown.hidden[0].to(theirs.device)]
    return None


@torch.no_grad()
def _fit_table_and_head(model: Any, grown: Grown, inputs: dict[str, Tensor], before: Seen) -> None:
    """Make the first layer read what it read, and a head on the table of tokens as well.

    A model may multiply its embeddings by a function of the hidden size (Gemma), which is divided
    out of the table. A tied head sums over the copies of every unit, each with the same weight;
    the norm before the head gives each copy its share, so that the sum is what it was.
    """
    assert grown.hidden is not None
    units, share = grown.hidden
    seen = seen_in(model, inputs)
    if seen is None:
        return
    times = factor(seen.embedded, _copies(before.embedded, units))
    times = 1.0 if times is None else times
    if abs(times - 1) > 1e-3:
        embeddings_of(model).weight.div_(times)
        seen = seen_in(model, inputs) or seen
    if not _is_tied(model):
        return
    norms = [norm for norm, given in seen.norms.items() if factor(seen.read, given) is not None]
    if not norms or getattr(norms[-1], "weight", None) is None:
        _raise_tied(grown)
    read = factor(seen.read, _copies(before.read, units))
    scale(norms[-1], share * times / (1.0 if read is None else read))


def _copies(x: Tensor | None, units: Tensor) -> Tensor | None:
    """Values of the trained hidden size on its copies; None of another size."""
    fits = x is not None and x.shape[-1] == int(units.max()) + 1
    return x[..., units.to(x.device)] if x is not None and fits else None


def _is_tied(model: Any) -> bool:
    head, table = head_of(model), embeddings_of(model)
    return head is not None and table is not None and head.weight is table.weight


def _raise_tied(grown: Grown) -> NoReturn:
    raise ValueError(
        f"grow: embeddings and head of {type(grown.model).__name__} are one tensor, whose copies "
        "of a unit would count twice in the head, and no norm is seen before the head that could "
        "give each its share. Make the larger model with config.tie_word_embeddings=False."
    )
