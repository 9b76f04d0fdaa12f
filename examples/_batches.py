"""Batches of few shapes and little padding, in an order that is a function of the seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from _text import UNLABELLED, Example
from torch import Tensor


def bucket_lengths(lengths: Sequence[int], count: int, *, multiple: int = 8) -> list[int]:
    """At most `count` lengths to pad to, so that the padding over all examples is least."""
    rounded = [-(-n // multiple) * multiple for n in lengths]
    edges = sorted(set(rounded))
    below = [sum(n <= e for n in rounded) for e in edges]
    # best[j]: the least number of tokens of the examples up to edges[j], and the edges used.
    best = [(below[j] * e, [e]) for j, e in enumerate(edges)]
    for _ in range(count - 1):
        best = [
            min(
                [
                    best[j],
                    *((best[i][0] + (below[j] - below[i]) * e, [*best[i][1], e]) for i in range(j)),
                ]
            )
            for j, e in enumerate(edges)
        ]
    return best[-1][1]


def grouped(
    order: Sequence[int], lengths: Sequence[int], size: int, edges: Sequence[int]
) -> list[tuple[int, list[int]]]:
    """Batches of like length, `(padded length, examples)`. What a bucket has left over moves to
    the next longer one, so that only the very last batch is not full."""
    found: list[tuple[int, list[int]]] = []
    left: list[int] = []
    for lower, edge in zip([0, *edges], edges, strict=False):
        members = left + [i for i in order if lower < lengths[i] <= edge]
        full = len(members) // size * size
        found += [(edge, members[k : k + size]) for k in range(0, full, size)]
        left = members[full:]
    if left:
        found.append((min(e for e in edges if e >= max(lengths[i] for i in left)), left))
    return found


Row = Mapping[str, Any]


class Hide(NamedTuple):
    """Tokens hidden at random in training, so that a teacher is asked about more texts than there
    are (Tang et al., arXiv:1903.12136): the fraction, by which token, and which never."""

    fraction: float
    token: int
    never: list[int]


class Batches:
    """Rows of token numbers as batches of few shapes.

    `train(seed)` gives the batches of an epoch in an order that is a function of the seed;
    `all()` every row once, in an order of its own. The last batch is filled up with empty rows,
    which have `valid` 0.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        size: int,
        buckets: int,
        pad: int,
        multiple: int = 8,
        hide: Hide | None = None,
    ) -> None:
        self.rows, self.pad, self.hide, self.size = rows, pad, hide, min(size, len(rows))
        self.lengths = [len(row["input_ids"]) for row in rows]
        self.edges = bucket_lengths(self.lengths, buckets, multiple=multiple)
        self.count = len(self._grouped(range(len(rows))))

    def _grouped(self, order: Sequence[int]) -> list[tuple[int, list[int]]]:
        return grouped(order, self.lengths, self.size, self.edges)

    def all(self) -> list[dict[str, Tensor]]:
        return [self._made(*group) for group in self._grouped(range(len(self.rows)))]

    def train(self, seed: int) -> Iterator[dict[str, Tensor]]:
        draw = random.Random(seed)
        order = list(range(len(self.rows)))
        draw.shuffle(order)
        groups = self._grouped(order)
        draw.shuffle(groups)
        generator = torch.Generator().manual_seed(seed)
        return (self._hidden(self._made(*group), generator) for group in groups)

    def _hidden(self, made: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        if self.hide is None or not self.hide.fraction:
            return made
        ids = made["input_ids"]
        drawn = torch.rand(ids.shape, generator=generator) < self.hide.fraction
        drawn &= ~torch.isin(ids, torch.tensor(self.hide.never))
        return {**made, "input_ids": ids.masked_fill(drawn, self.hide.token)}

    def _made(self, length: int, members: Sequence[int]) -> dict[str, Tensor]:
        rows = [self.rows[i] for i in members]
        mask = [[1] * len(row["input_ids"]) for row in rows]
        empty = [[1]] * (self.size - len(rows))  # one token to attend to
        made = {"attention_mask": _filled([*mask, *empty], (self.size, length), 0)}
        for name, value in rows[0].items():
            fill = {"input_ids": self.pad, "labels": UNLABELLED, "index": -1}.get(name, 0)
            shape = (self.size, length) if isinstance(value, list) else (self.size,)
            made[name] = _filled([row[name] for row in rows], shape, fill)
        return {**made, "valid": _filled([1] * len(rows), (self.size,), 0)}


def _filled(values: Sequence[Any], shape: tuple[int, ...], fill: int) -> Tensor:
    made = torch.full(shape, fill)
    for i, value in enumerate(values):
        if isinstance(value, list):
            made[i, : len(value)] = torch.tensor(value)
        else:
            made[i] = value
    return made


def encode(
    tokenizer: Callable[..., Any], examples: Sequence[Example], max_length: int
) -> list[dict[str, Any]]:
    """Token numbers of texts, pairs of texts, or texts in words."""
    words = isinstance(examples[0].text, list)
    pairs = None if examples[0].pair is None else [e.pair for e in examples]
    found = tokenizer(
        [e.text for e in examples],
        pairs,
        truncation=True,
        max_length=max_length,
        is_split_into_words=words,
    )
    names = [n for n in ("input_ids", "token_type_ids") if n in found]
    rows = [{n: found[n][i] for n in names} for i in range(len(examples))]
    if words:
        for i, row in enumerate(rows):
            row["word_ids"] = found.word_ids(i)
    return rows
