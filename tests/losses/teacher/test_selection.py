"""Which predictions of a teacher are kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fkd.losses import least_wrong


def reference(scores, labels, fraction):
    """By sorting, as the paper says it."""
    error = np.array([(row > row[y]).sum() for row, y in zip(scores, labels, strict=True)])
    wrong = [i for i in np.argsort(error, kind="stable") if error[i] > 0]
    kept = set(wrong[: int(len(wrong) * fraction + 1e-4)])
    return [bool(error[i] == 0 or i in kept) for i in range(len(error))]


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.75, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_is_the_definition(seed, fraction):
    g = torch.Generator().manual_seed(seed)
    scores = torch.randn(20, 5, generator=g)
    labels = torch.randint(5, (20,), generator=g)
    ours = least_wrong(scores, labels, fraction=fraction)
    assert ours.tolist() == reference(scores.numpy(), labels.numpy(), fraction)


def test_fractions_in_a_tensor_are_not_cut_by_rounding():
    scores, labels = torch.tensor([[1.0, 0.0]]).expand(10, 2), torch.ones(10).long()
    assert least_wrong(scores, labels, fraction=torch.tensor(0.9)).sum() == 9


def test_masked_samples_take_no_part():
    g = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(9, 4, generator=g), torch.randint(4, (9,), generator=g)
    where = torch.tensor([1, 1, 0, 1, 1, 1, 0, 1, 1]).bool()
    ours = least_wrong(scores, labels.masked_fill(~where, -100), fraction=0.5, where=where)
    assert not ours[~where].any()
    assert torch.equal(ours[where], least_wrong(scores[where], labels[where], fraction=0.5))


@pytest.mark.compile
def test_compiles_whole():
    scores, labels = torch.randn(9, 4), torch.randint(4, (9,))
    compiled = torch.compile(least_wrong, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(scores, labels), least_wrong(scores, labels))
