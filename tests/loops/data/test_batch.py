"""Batches: what a loader yields, on the device, in parts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch

from fkd.loops._data.batch import batch_size, signature, split, tensors_only

CPU = torch.device("cpu")


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


def test_what_is_no_tensor_is_left_out_and_numbers_become_tensors():
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
    found = tensors_only(given, CPU)
    assert set(found) == {"x", "array", "number", "flag", "scalar", "deep"}
    assert torch.equal(found["array"], torch.tensor([0, 1]))
    assert found["number"] == 3 and found["flag"].dtype is torch.bool
    assert found["deep"]["y"][1:] == (None, None)


def test_named_tuples_and_lists_stay_what_they_are():
    pair = tensors_only(Pair(torch.ones(2), torch.zeros(2)), CPU)
    assert isinstance(pair, Pair)
    assert isinstance(tensors_only([torch.ones(2)], CPU), list)


def test_the_signature_is_structure_shape_and_dtype():
    a = {"x": torch.ones(2, 3), "y": [torch.zeros(2)]}
    b = {"x": torch.zeros(2, 3), "y": [torch.ones(2)]}
    assert signature(a) == signature(b)
    assert signature(a) != signature({**a, "x": torch.ones(2, 4)})
    assert signature(a) != signature({**a, "x": torch.ones(2, 3).long()})
    assert signature(a) != signature({"x": a["x"]})


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
    with pytest.raises(ValueError, match="accumulate=5, and the batch has only 4 examples"):
        split({"x": torch.ones(4, 2)}, 5)
