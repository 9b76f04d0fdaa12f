"""What is asked about the samples of a batch of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fkd._base.errors import listing
from fkd._base.types import Batch
from fkd._refs.refs import Ref
from fkd.loops._data.fields import Field, as_fields

from ._engines import Question
from ._errors import SourceError


class Wanted(NamedTuple):
    """What is asked of a server.

    Attributes:
      of: the ref that the answers stand for.
      vocab: how many classes there are.
      k: how many of them for a position.
      candidates: a field of the batch with the classes of each position, or the classes of all.
      tokens, mask: fields of the batch.
      temperature: of the softmax.
    """

    of: Ref
    vocab: int
    k: int
    candidates: str | tuple[int, ...] | None
    tokens: Field
    mask: Field
    temperature: float


def wanted_of(
    what: str,
    of: Ref,
    vocab: int,
    k: int,
    candidates: str | Sequence[int] | None,
    tokens: Field,
    mask: Field,
    temperature: float,
) -> Wanted:
    """What is asked of a server.

    Raises:
      SourceError: an argument is out of range.
    """
    if candidates is not None and not isinstance(candidates, str):
        candidates = tuple(candidates)
        k = len(candidates)
        if len(set(candidates)) < k:
            raise SourceError(f"{what}: candidates has an id twice; each once is expected.")
        if any(not 0 <= i < vocab for i in candidates):
            raise SourceError(f"{what}: candidates has ids outside of 0 to {vocab - 1}.")
    if not 1 <= k <= vocab:
        raise SourceError(f"{what}: k is {k}; 1 to vocab = {vocab} is expected.")
    if not 0 < temperature < float("inf"):
        raise SourceError(f"{what}: temperature is {temperature}; a number above 0 is expected.")
    return Wanted(of, vocab, k, candidates, tokens, mask, float(temperature))


class Row(NamedTuple):
    """One sample of a batch: where its tokens stand, and what is asked of it."""

    places: Tensor
    question: Question


class Rows(NamedTuple):
    """The samples of a batch, and its shape."""

    samples: list[Row]
    shape: tuple[int, int]


def rows_of(batch: Batch, wanted: Wanted, what: str) -> Rows:
    """The questions of a batch.

    Raises:
      SourceError: a field is missing, or is not `[samples, length]` integers.
    """
    fields = as_fields(batch)
    tokens = _field(fields, wanted.tokens, what, 2)
    has_mask = wanted.mask in fields
    mask = (
        _field(fields, wanted.mask, what, 2).bool() if has_mask else torch.ones_like(tokens).bool()
    )
    if mask.shape != tokens.shape:
        raise SourceError(
            f"{what}: {wanted.mask!r} has shape {tuple(mask.shape)}, and {wanted.tokens!r} "
            f"{tuple(tokens.shape)}."
        )
    named = wanted.candidates if isinstance(wanted.candidates, str) else None
    asked = None if named is None else _field(fields, named, what, 3)
    if asked is not None and asked.shape != (*tokens.shape, wanted.k):
        raise SourceError(
            f"{what}: {named!r} has shape {tuple(asked.shape)}; "
            f"{(*tokens.shape, wanted.k)} is expected, k ids for each position."
        )
    samples: list[Row] = []
    for r in range(len(tokens)):
        places = mask[r].nonzero().flatten()
        text = tokens[r, places].tolist()
        ids = wanted.candidates if isinstance(wanted.candidates, tuple) else None
        by_place = None if asked is None else _candidates(asked[r, places], wanted, what, r)
        if text:  # one more, so that the position of the last token is scored as well
            question = Question([*text, text[-1]], wanted.k, by_place, ids, wanted.temperature)
            samples.append(Row(places, question))
        else:
            raise SourceError(f"{what}: row {r} of the batch has no token ({wanted.mask!r} is 0).")
    return Rows(samples, (tokens.shape[0], tokens.shape[1]))


def _candidates(ids: Tensor, wanted: Wanted, what: str, row: int) -> list[list[int]]:
    """The candidates of a sample.

    Raises:
      SourceError: they are no ids, or not each once at a position.
    """
    ordered = ids.long().sort(-1).values
    if bool(((ids < 0) | (ids >= wanted.vocab)).any()) or not bool(ordered.diff(dim=-1).all()):
        raise SourceError(
            f"{what}: {wanted.candidates!r} of row {row} has ids outside of 0 to "
            f"{wanted.vocab - 1}, or one of them twice at a position."
        )
    return ids.tolist()


def _field(batch: Mapping[Field, Any], name: Field, what: str, axes: int) -> Tensor:
    if name not in batch:
        have = listing(map(str, batch))
        raise SourceError(f"{what}: the batch has no field {name!r}. It has: {have}.")
    x = torch.as_tensor(batch[name]).detach().cpu()
    if x.ndim != axes or x.is_floating_point():
        raise SourceError(
            f"{what}: {name!r} is {x.dtype} {tuple(x.shape)}; integers with {axes} axes are "
            "expected."
        )
    return x
