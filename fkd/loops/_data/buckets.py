"""Batches of like length: few shapes to compile for, and little padding."""

from __future__ import annotations

import numbers
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from fkd._base.errors import expect

from .._base.random import fold_in

Last = Literal["keep", "drop"]


class Bucketed(NamedTuple):
    """One batch: which examples, and the length that all of them are padded to."""

    length: int
    examples: list[int]


def bucket_lengths(lengths: Sequence[int], count: int, *, multiple: int = 8) -> list[int]:
    """At most `count` lengths to pad to, so that the padding over all examples is least.

        least over e_1 < ... < e_count of  sum_n (min {e_k >= l_n} - l_n)

    found exactly, by dynamic programming over the distinct lengths.

    Args:
      lengths: of all examples, in tokens (or whatever is padded).
      count: how many lengths, and so how many compilations at most.
      multiple: the lengths are multiples of this; 8 suits the matrix units of most devices.

    Returns:
      The lengths in ascending order; the last is at least the longest example.

    Raises:
      ValueError: no example, a length below 1, or a count or multiple below 1.

    Example:
      >>> bucket_lengths([3, 4, 5, 30, 31], 2)
      [8, 32]
    """
    _at_least_one("bucket_lengths", count=count, multiple=multiple)
    rounded = -(-_lengths("bucket_lengths", lengths) // multiple) * multiple
    edges, sizes = np.unique(rounded, return_counts=True)
    below = np.concatenate([[0], np.cumsum(sizes)])
    # cost[i, j]: tokens of the examples between edges i and j (the first i and the first j + 1),
    # all padded to edge j.
    cost = (below[None, 1:] - below[:-1, None]).astype(float) * edges
    cost[np.tril_indices(len(edges), -1)] = np.inf
    best, chosen = cost[0], [np.zeros(len(edges), dtype=int)]
    for _ in range(min(count, len(edges)) - 1):
        # With one edge more: the cheaper ones up to i - 1, then one bucket from i to j.
        costs = np.concatenate([[0.0], best[:-1]])[:, None] + cost
        chosen.append(costs.argmin(0))
        best = costs.min(0)
    ends, j = [], len(edges) - 1
    for first in reversed(chosen):
        ends.append(int(edges[j]))
        j = int(first[j]) - 1
        if j < 0:
            break
    return ends[::-1]


def bucket_batches(
    lengths: Sequence[int],
    batch_size: int,
    edges: Sequence[int],
    *,
    seed: int | None = None,
    last: Last = "keep",
) -> list[Bucketed]:
    """The batches of an epoch, each of examples of like length. Pure: the same seed, the same
    batches.

    What a bucket has left over moves to the next longer one, so that all batches but one are
    full: there are as many shapes as edges, and one more for the batch that is not full.

    Args:
      lengths: of all examples.
      batch_size: examples in a batch.
      edges: the lengths to pad to, from `bucket_lengths`.
      seed: from which the order of examples and of batches follows; None: as given, short
        batches first (for evaluation).
      last: what happens to the batch that is not full: "keep" gives it as it is, so that every
        example is used (`pad_batch(size=...)` fills it up with rows that do not count);
        "drop" leaves it out.

    Returns:
      `(length, examples)` of every batch.

    Raises:
      ValueError: an example is longer than the last edge.

    Example:
      >>> bucket_batches([3, 30, 4, 5, 31], 2, [8, 32])
      [Bucketed(length=8, examples=[0, 2]), Bucketed(length=32, examples=[3, 1]), \
Bucketed(length=32, examples=[4])]
    """
    _at_least_one("bucket_batches", batch_size=batch_size)
    sizes = _lengths("bucket_batches", lengths)
    edges = sorted(edges)
    bucket = np.searchsorted(np.asarray(edges), sizes)
    if int(bucket.max()) == len(edges):
        raise ValueError(
            f"bucket_batches: example {int(sizes.argmax())} has length {int(sizes.max())}; at most "
            f"{edges[-1] if edges else 0}, the last of the edges, is expected. Truncate it, or "
            "take the edges from bucket_lengths(lengths, count)."
        )
    draw = np.random.default_rng(seed)  # its own: the global generators stay as they are
    order = np.arange(len(sizes)) if seed is None else draw.permutation(len(sizes))
    batches, left = _cut(order, bucket[order], batch_size, edges)
    if left:
        batches.append(Bucketed(padded_length(int(sizes[left].max()), edges), left))
    batches = batches if seed is None else [batches[i] for i in draw.permutation(len(batches))]
    return [b for b in batches if last == "keep" or len(b.examples) == batch_size]


def _cut(
    order: Any, bucket: Any, size: int, edges: Sequence[int]
) -> tuple[list[Bucketed], list[int]]:
    """Full batches, and the examples that are left over."""
    batches: list[Bucketed] = []
    left: list[int] = []
    for k, edge in enumerate(edges):
        members = left + order[bucket == k].tolist()
        full = len(members) // size * size
        batches += [Bucketed(edge, members[i : i + size]) for i in range(0, full, size)]
        left = members[full:]
    return batches, left


def padded_length(longest: int, edges: Sequence[int]) -> int:
    """The length that a batch is padded to: the first edge that its longest example fits in.

    Example:
      >>> padded_length(9, [8, 32])
      32
    """
    fitting = [edge for edge in edges if edge >= longest]
    if not fitting:
        raise ValueError(
            f"padded_length: longest is {longest}; at most {max(edges, default=0)}, the last of "
            "the edges, is expected. Truncate it, or take the edges from "
            "bucket_lengths(lengths, count)."
        )
    return min(fitting)


class BucketBatchSampler(Sampler[list[int]]):
    """`bucket_batches` as the batch sampler of a `DataLoader`.

        sampler = BucketBatchSampler(lengths, batch_size=32, buckets=4)
        collate = functools.partial(pad_batch, edges=sampler.edges, fill={"labels": -100})
        loader = DataLoader(rows, batch_sampler=sampler, collate_fn=collate)

    The order is a function of (seed, epoch) alone. `fit` tells the sampler both, so a run that
    is resumed goes on with the batches that it would have had; a loop of your own calls
    `set_epoch(epoch)` before each epoch, and skips with `itertools.islice`.

    Args:
      lengths: of all examples, in the order of the data set.
      batch_size: examples in a batch.
      buckets: how many lengths to pad to.
      multiple: see `bucket_lengths`.
      edges: the lengths themselves, instead of `buckets`.
      shuffle: False: the order of the examples, short batches first, in every epoch.
      seed: for loops other than `fit`, which brings its own.
      last: see `bucket_batches`.

    Attributes:
      edges: the lengths that batches are padded to; give them to `pad_batch`.
      generator: holds the seed; nothing is drawn from it.

    Example:
      >>> sampler = BucketBatchSampler([3, 30, 4, 5, 31, 6], batch_size=2, buckets=2)
      >>> sampler.edges, len(sampler), list(sampler) == list(sampler)
      ([8, 32], 3, True)
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        *,
        buckets: int = 4,
        multiple: int = 8,
        edges: Sequence[int] | None = None,
        shuffle: bool = True,
        seed: int = 0,
        last: Last = "keep",
    ) -> None:
        longest = bucket_lengths(lengths, buckets, multiple=multiple) if edges is None else edges
        self.lengths, self.batch_size, self.edges = lengths, batch_size, list(longest)
        self.last: Last = last
        self.shuffle, self.epoch = shuffle, 0
        self.generator = torch.Generator().manual_seed(seed)
        # Errors now and not in the first epoch; and the number of batches is always the same.
        self._count = len(bucket_batches(lengths, batch_size, self.edges, last=last))

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is of."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[int]]:
        seed = fold_in(self.generator.initial_seed(), self.epoch) if self.shuffle else None
        sizes = self.lengths, self.batch_size, self.edges
        batches = bucket_batches(*sizes, seed=seed, last=self.last)
        return (batch.examples for batch in batches)


def pad_batch(
    rows: Sequence[Mapping[str, Any]],
    *,
    edges: Sequence[int],
    size: int | None = None,
    fill: Mapping[str, int | float] | None = None,
) -> dict[str, Tensor]:
    """Rows as a batch of one of few shapes; the `collate_fn` of a `DataLoader`.

    Args:
      rows: a dict for each example. Lists (and arrays and tensors with one axis) are sequences,
        which are padded; numbers are one value for each example.
      edges: the lengths to pad to; see `padded_length`.
      size: fill the batch up to so many rows, so that the last one has the shape of the others.
        Its empty rows have `valid` 0 and must be left out of every term.
      fill: what sequences are padded with, and what stands in empty rows, by name (`{"input_ids":
        tokenizer.pad_token_id, "labels": -100}`); 0 by default.

    Returns:
      `[rows, length]` for sequences and `[rows]` for numbers. `attention_mask` is made if the
      rows have none: 1 where there is a token. With `size`, there is `valid` (`[rows]`, 1 for a
      row and 0 for an empty one), and an empty row attends to its first place, since a softmax
      over nothing is nan.

    Example:
      >>> pad_batch([{"input_ids": [5, 6, 7], "labels": 1}], edges=[4, 8], size=2)["input_ids"]
      tensor([[5, 6, 7, 0],
              [0, 0, 0, 0]])
    """
    count = len(rows) if size is None else size
    if not rows or len(rows) > count:
        raise ValueError(f"pad_batch: {len(rows)} rows; 1 to {count} are expected.")
    tensors = [{name: torch.as_tensor(value) for name, value in row.items()} for row in rows]
    sequences = [x for row in tensors for x in row.values() if x.ndim]
    length = padded_length(max((len(x) for x in sequences), default=0), edges)
    values = {"attention_mask": 0, **(fill or {})}
    if sequences and "attention_mask" not in tensors[0]:
        longest = [max((x for x in row.values() if x.ndim), key=len) for row in tensors]
        for row, x in zip(tensors, longest, strict=True):
            row["attention_mask"] = torch.ones(len(x), dtype=torch.int64)
    padded = {name: _stacked([row[name] for row in tensors], count, length, values.get(name, 0))
            for name in tensors[0]}  # fmt: skip
    if size is not None:
        padded["valid"] = (torch.arange(count) < len(rows)).long()
        if "attention_mask" in padded:
            padded["attention_mask"][len(rows) :, 0] = 1
    return padded


def _stacked(values: Sequence[Tensor], count: int, length: int, fill: int | float) -> Tensor:
    shape = (count, length) if values[0].ndim else (count,)
    stacked = torch.full(shape, fill, dtype=values[0].dtype)
    for i, value in enumerate(values):
        stacked[(i, slice(len(value))) if value.ndim else i] = value
    return stacked


def _lengths(name: str, lengths: Any) -> Any:
    try:
        array = np.asarray(lengths, dtype=np.int64)
    except (TypeError, ValueError):
        array = np.zeros(())
    if array.ndim != 1:
        what = "None" if lengths is None else f"a {type(lengths).__name__}"
        raise TypeError(
            f"{name}: lengths is {what}; a list with the length of each example is expected: "
            "[len(row) for row in rows]."
        )
    if not array.size or int(array.min()) < 1:
        what = f"example {int(array.argmin())} has length {array.min()}" if array.size else "empty"
        raise ValueError(
            f"{name}: lengths: {what}; a length of at least 1 for each example is expected."
        )
    return array


def _at_least_one(name: str, **options: int) -> None:
    for option, value in options.items():
        expect(name, option, value, numbers.Integral, "a whole number")
        if value < 1:
            raise ValueError(f"{name}: {option} is {value}; at least 1 is expected.")
