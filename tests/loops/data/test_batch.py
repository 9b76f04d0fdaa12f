"""Batches: what a loader yields, on the device, in parts."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from typing import NamedTuple

import numpy as np
import pytest
import torch

from fkd.loops._data.batch import (
    batch_size,
    examples_in,
    leaves,
    normalised,
    signature,
    split,
    structure_change,
    tokens_in,
)
from fkd.loops._data.packing import pack

CPU = torch.device("cpu")


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


def test_what_is_not_a_tensor_is_left_out_and_numbers_become_tensors():
    given = {
        "x": torch.ones(2),
        "array": np.arange(2),
        "number": 3,
        "flag": True,
        "scalar": np.float32(0.5),
        "text": "hello",
        "texts": ["a", "b"],
        "none": None,
        "deep": {"y": (torch.zeros(2), "text", None)},
        "names": np.array(["a", "b"]),
    }
    found = normalised(given, CPU)
    assert set(found) == {"x", "array", "number", "flag", "scalar", "deep"}
    assert torch.equal(found["array"], torch.tensor([0, 1]))
    assert found["number"] == 3 and found["flag"].dtype is torch.bool
    assert found["deep"]["y"][1:] == (None, None)


def test_named_tuples_and_lists_stay_what_they_are():
    pair = normalised(Pair(torch.ones(2), torch.zeros(2)), CPU)
    assert isinstance(pair, Pair)
    assert isinstance(normalised([torch.ones(2)], CPU), list)


def test_mappings_of_any_type_become_dicts():
    for kind in (dict, OrderedDict, UserDict):
        batch = normalised(kind(x=kind(y=torch.ones(2))))
        assert type(batch) is dict and type(batch["x"]) is dict


def test_a_normalised_batch_is_what_it_was():
    batch = normalised({"x": [torch.ones(2), None], "p": pack(torch.ones(2, 3).bool()), "n": 3})
    again = normalised(batch)
    assert again["x"][0] is batch["x"][0] and again["x"][1] is None and again["n"] is batch["n"]
    assert signature(again) == signature(batch)


class Strange:
    """An object that holds a tensor in its own way."""

    x = torch.ones(2)


@pytest.mark.parametrize("batch", [Strange(), "text", ["a", "b"], (None, "a")])
def test_a_batch_without_a_tensor_is_refused(batch):
    with pytest.raises(ValueError, match=f"a batch is a {type(batch).__name__} without a tensor"):
        normalised(batch)


@pytest.mark.parametrize("batch", [None, {}, [], ()])
def test_a_batch_of_nothing_is_one(batch):
    assert normalised(batch) == batch


def test_places_are_code():
    batch = normalised({"a": {"b": (torch.ones(1), [2.0])}, "p": Pair(torch.ones(1), 3)})
    places = [place for place, _ in leaves(batch)]
    assert places == ["batch['a']['b'][0]", "batch['a']['b'][1][0]", "batch['p'].x", "batch['p'].y"]
    assert signature(batch).places == places
    for place, x in leaves(batch):
        assert eval(place) is x


def test_examples_are_counted_where_most_tensors_have_them():
    x = torch.ones(8, 2)
    assert examples_in({"class_weights": torch.ones(3), "x": x, "y": torch.ones(8)}) == 8
    assert examples_in({"class_weights": torch.ones(3), "x": x}) == 8
    assert examples_in(pack(torch.ones(4, 6).bool(), parts=2)) == 4
    assert examples_in({"t": torch.tensor(2.0)}) == 1 == examples_in(None)


def test_tokens_are_those_of_the_mask_or_the_places():
    ids, mask = torch.ones(2, 3, dtype=torch.long), torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert tokens_in({"input_ids": ids}) == 6
    assert tokens_in({"input_ids": ids, "attention_mask": mask}) == 3
    assert tokens_in([{"x": torch.ones(2, 3)}]) == 0


def test_the_signature_is_structure_shape_and_dtype():
    a = {"x": torch.ones(2, 3), "y": [torch.zeros(2)]}
    b = {"x": torch.zeros(2, 3), "y": [torch.ones(2)]}
    assert signature(a) == signature(b)
    assert signature(a) != signature({**a, "x": torch.ones(2, 4)})
    assert signature(a) != signature({**a, "x": torch.ones(2, 3).long()})
    assert signature(a) != signature({"x": a["x"]})
    assert hash(signature(a)) == hash(signature(b))
    assert signature(a) == signature({"y": b["y"], "x": b["x"]})


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_the_parts_put_together_are_the_batch(parts):
    batch = {"x": torch.arange(14.0).reshape(7, 2), "y": (torch.arange(7),), "t": torch.tensor(2.0)}
    pieces = split(batch, parts)
    assert len(pieces) == parts
    assert torch.equal(torch.cat([p["x"] for p in pieces]), batch["x"])
    assert torch.equal(torch.cat([p["y"][0] for p in pieces]), batch["y"][0])
    assert all(p["t"] == 2.0 for p in pieces)
    assert {len(p["x"]) for p in pieces} <= {7 // parts, 7 // parts + 1}


def test_a_batch_that_cannot_be_split_says_why():
    with pytest.raises(ValueError, match=r"first axes of different lengths: batch\['x'\]: 4"):
        batch_size({"x": torch.ones(4, 2), "y": torch.ones(3)})
    with pytest.raises(ValueError, match=r"accumulate=5, and the batch has only 4 examples"):
        split({"x": torch.ones(4, 2)}, 5)
    with pytest.raises(ValueError, match=r"5, and .* only 1 examples.*drop_last=True"):
        split({"x": torch.ones(1, 2)}, 5)
    boxes = [torch.ones(n, 4) for n in (0, 3)]
    with pytest.raises(ValueError, match=r"a list with one tensor for each example.*padded"):
        batch_size({"x": torch.ones(2, 2), "boxes": boxes})


def test_a_change_of_structure_is_told_in_words():
    first = signature({"x": torch.ones(2, 3), "y": torch.ones(2)})
    same = signature({"x": torch.ones(5, 3), "y": torch.ones(5)})
    assert structure_change(first, same) is None and first != same
    other = signature({"x": torch.ones(2, 3, dtype=torch.int64), "z": torch.ones(2)})
    assert structure_change(first, other) == (
        "missing: batch['y']; new: batch['z']; batch['x'] was float32 with 2 axes and is int64 "
        "with 2 axes"
    )
