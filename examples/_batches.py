"""Batches of few shapes and little padding, in an order that is a function of the seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from _text import UNLABELLED, Example
from torch import Tensor

from fkd.loops import bucket_batches, bucket_lengths, pad_batch

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
        self.count = len(self._grouped(None))

    def _grouped(self, seed: int | None) -> list[list[int]]:
        found = bucket_batches(self.lengths, self.size, self.edges, seed=seed)
        return [made.examples for made in found]

    def all(self) -> list[dict[str, Tensor]]:
        return [self._made(group) for group in self._grouped(None)]

    def train(self, seed: int) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        groups = self._grouped(seed)
        return (self._hidden(self._made(group), generator) for group in groups)

    def _hidden(self, made: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        if self.hide is None or not self.hide.fraction:
            return made
        ids = made["input_ids"]
        drawn = torch.rand(ids.shape, generator=generator) < self.hide.fraction
        drawn &= ~torch.isin(ids, torch.tensor(self.hide.never))
        return {**made, "input_ids": ids.masked_fill(drawn, self.hide.token)}

    def _made(self, members: Sequence[int]) -> dict[str, Tensor]:
        fill = {"input_ids": self.pad, "labels": UNLABELLED, "index": -1}
        rows = [self.rows[i] for i in members]
        return pad_batch(rows, edges=self.edges, size=self.size, fill=fill)


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
