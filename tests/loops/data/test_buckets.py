"""Batches of like length: the least padding, few shapes, an order that follows from the seed."""

from __future__ import annotations

import functools
import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from fkd.loops import (
    BucketBatchSampler,
    bucket_batches,
    bucket_lengths,
    pad_batch,
    padded_length,
)
from fkd.loops._data.epochs import epoch_batches

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=30)


def padded(lengths, edges):
    """Tokens after padding."""
    return sum(min(e for e in edges if e >= n) for n in lengths)


# -- lengths --------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(LENGTHS, st.integers(1, 4), st.sampled_from([1, 8]))
def test_no_other_choice_of_lengths_pads_less(lengths, count, multiple):
    edges = bucket_lengths(lengths, count, multiple=multiple)
    assert edges == sorted(set(edges)) and len(edges) <= count
    assert all(e % multiple == 0 for e in edges) and edges[-1] >= max(lengths)
    all_edges = sorted({-(-n // multiple) * multiple for n in lengths})
    others = (
        [*chosen, all_edges[-1]]
        for k in range(count)
        for chosen in itertools.combinations(all_edges[:-1], min(k, len(all_edges) - 1))
    )
    assert padded(lengths, edges) == min(padded(lengths, o) for o in others)


def test_as_many_buckets_as_lengths_pad_nothing():
    assert bucket_lengths([5, 2, 9, 2], 9, multiple=1) == [2, 5, 9]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda: bucket_lengths([], 2), "bucket_lengths: lengths: empty"),
        (lambda: bucket_lengths([3, 0], 2), "example 1 has length 0; a length of at least 1"),
        (lambda: bucket_lengths([3], 0), "count is 0; at least 1"),
        (lambda: bucket_batches([3, 99], 2, [8, 16]), "example 1 has length 99; at most 16"),
        (lambda: bucket_batches([3], 0, [8]), "batch_size is 0; at least 1"),
        (lambda: padded_length(9, [4, 8]), "longest is 9; at most 8"),
        (lambda: pad_batch([], edges=[8]), "0 rows; 1 to 0 are expected"),
        (lambda: pad_batch([{"x": 1}] * 3, edges=[8], size=2), "3 rows; 1 to 2 are expected"),
        (lambda: BucketBatchSampler([3, 99], 2, edges=[8]), "example 1 has length 99"),
    ],
)
def test_mistakes_are_said(bad, message):
    with pytest.raises(ValueError, match=message):
        bad()


# -- batches --------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(LENGTHS, st.integers(1, 7), st.integers(0, 3), st.sampled_from([None, 0, 5]))
def test_every_example_once_in_batches_of_which_one_is_not_full(lengths, size, count, seed):
    edges = bucket_lengths(lengths, count + 1, multiple=4)
    found = bucket_batches(lengths, size, edges, seed=seed)
    assert sorted(i for b in found for i in b.examples) == list(range(len(lengths)))
    sizes = sorted(len(b.examples) for b in found)
    assert all(n == size for n in sizes[1:]) and sizes[0] == (len(lengths) % size or size)
    for made in found:  # the length that a collate function finds from the rows alone
        assert made.length == padded_length(max(lengths[i] for i in made.examples), edges)
    dropped = bucket_batches(lengths, size, edges, seed=seed, last="drop")
    assert dropped == [b for b in found if len(b.examples) == size]


def test_the_order_is_a_function_of_the_seed():
    draw = random.Random(0)
    lengths = [draw.randint(1, 50) for _ in range(40)]
    made = functools.partial(bucket_batches, lengths, 4, [16, 32, 56])
    states = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert made(seed=1) == made(seed=1) != made(seed=2)
    assert states == (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    still = [b.length for b in made()]
    assert still == sorted(still) != [b.length for b in made(seed=1)]


def rows():
    draw = random.Random(3)
    return [
        {"input_ids": [i + 1] * draw.randint(1, 40), "labels": i, "index": i} for i in range(30)
    ]


def loader(**options):
    data = rows()
    lengths = [len(r["input_ids"]) for r in data]
    sampler = BucketBatchSampler(lengths, 4, buckets=3, **options)
    collate = functools.partial(pad_batch, edges=sampler.edges, fill={"labels": -100, "index": -1})
    return DataLoader(data, batch_sampler=sampler, collate_fn=collate)


def order(batches):
    return [b["index"].tolist() for b in batches]


def test_a_loader_of_its_own_is_told_the_epoch():
    made = loader(seed=1)
    first = order(made)
    assert order(made) == first == order(loader(seed=1)) != order(loader(seed=2))
    made.batch_sampler.set_epoch(1)
    assert order(made) != first and sorted(i for b in order(made) for i in b) == list(range(30))
    assert len(made) == len(first) == 8


def test_fit_tells_it_seed_and_epoch_and_goes_on_where_it_was():
    made = loader()
    first = order(epoch_batches(made, 1, 0))
    assert order(epoch_batches(made, 1, 0)) == first == order(epoch_batches(loader(seed=9), 1, 0))
    assert order(epoch_batches(made, 1, 1)) != first != order(epoch_batches(made, 2, 0))
    assert order(epoch_batches(loader(), 1, 0, skip=5)) == first[5:]


def test_without_shuffling_every_epoch_is_alike():
    made = loader(shuffle=False)
    assert order(epoch_batches(made, 1, 0)) == order(epoch_batches(made, 2, 3))


def test_shapes_are_few():
    made = loader()
    shapes = {b["input_ids"].shape for epoch in range(8) for b in epoch_batches(made, 0, epoch)}
    full = {s for s in shapes if s[0] == 4}
    assert len(full) == 3 and {s[0] for s in shapes - full} == {30 % 4}
    only = loader(last="drop")
    assert len(only) == 7
    assert {b["input_ids"].shape for e in range(8) for b in epoch_batches(only, 0, e)} == full


# -- padding --------------------------------------------------------------------------------


def test_rows_are_padded_and_batches_filled_up():
    data = [
        {"input_ids": [1, 2, 3], "weights": np.array([0.5, 0.5, 0.5]), "labels": 7},
        {"input_ids": torch.tensor([4]), "weights": [1.0], "labels": 8},
    ]
    made = pad_batch(data, edges=[2, 4, 8], size=3, fill={"input_ids": 9, "labels": -100})
    assert made["input_ids"].tolist() == [[1, 2, 3, 9], [4, 9, 9, 9], [9, 9, 9, 9]]
    assert made["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    assert made["weights"][0].tolist() == [0.5, 0.5, 0.5, 0.0]
    assert made["labels"].tolist() == [7, 8, -100] and made["valid"].tolist() == [1, 1, 0]
    assert made["weights"].is_floating_point() and made["labels"].dtype is torch.int64


def test_a_mask_that_is_given_is_kept_and_nothing_is_filled_up_unasked():
    data = [
        {"input_ids": [1, 2], "attention_mask": [1, 0]},
        {"input_ids": [1], "attention_mask": [1]},
    ]
    made = pad_batch(data, edges=[2])
    assert made["attention_mask"].tolist() == [[1, 0], [1, 0]] and "valid" not in made
    assert set(pad_batch([{"x": 1.5}], edges=[8])) == {"x"}
