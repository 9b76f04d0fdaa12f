"""Linear CKA against its definition with Gram matrices, and its invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fkd.loops._evaluate.similarity import linear_cka


def reference(x: np.ndarray, y: np.ndarray) -> float:
    """HSIC of Gram matrices, from the paper's equations 3 and 5."""
    n = len(x)
    h = np.eye(n) - 1 / n
    k, m = h @ (x @ x.T) @ h, h @ (y @ y.T) @ h
    return float(np.sum(k * m) / np.sqrt(np.sum(k * k) * np.sum(m * m)))


def states(seed: int, *, layers: int, width: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 6, width, generator=generator) + 3 for _ in range(layers)]


def test_it_is_the_ratio_of_hsics():
    student, teacher = states(0, layers=2, width=5), states(1, layers=3, width=7)
    teacher[1] = student[0] @ torch.randn(5, 7)
    found = linear_cka(student, teacher)
    expected = [
        [
            reference(x.reshape(-1, 5).double().numpy(), y.reshape(-1, 7).double().numpy())
            for y in teacher
        ]
        for x in student
    ]
    assert found.shape == (2, 3) and found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)


def test_masked_positions_are_as_good_as_absent():
    student, teacher = states(0, layers=2, width=5), states(1, layers=2, width=4)
    where = torch.rand(4, 6) > 0.3
    expected = linear_cka([x[where] for x in student], [y[where] for y in teacher])
    for x in (*student, *teacher):
        x[~where] = float("nan")
    torch.testing.assert_close(linear_cka(student, teacher, where=where), expected)
    torch.testing.assert_close(linear_cka(student, teacher, where=where.long()), expected)


def test_a_large_common_offset_does_not_spoil_it():
    student, teacher = states(0, layers=1, width=5), states(1, layers=1, width=4)
    student, teacher = [x.double() for x in student], [y.double() for y in teacher]
    far = [x + 1e6 for x in student]
    expected = linear_cka(student, teacher)
    torch.testing.assert_close(linear_cka(far, teacher), expected, rtol=1e-7, atol=0)


def test_rotation_and_scale_do_not_matter():
    (x,) = states(0, layers=1, width=5)
    rotation = torch.linalg.qr(torch.randn(5, 5))[0]
    torch.testing.assert_close(
        linear_cka([x], [x @ rotation * 7 + 2]), torch.ones(1, 1).double(), rtol=1e-5, atol=0
    )


def test_a_constant_layer_is_like_nothing():
    (x,) = states(0, layers=1, width=5)
    assert linear_cka([x], [torch.ones(4, 6, 2), x]).tolist() == [[0.0, 1.0]]


def test_half_precision_is_computed_in_double():
    student, teacher = states(0, layers=1, width=5), states(1, layers=1, width=4)
    half = [x.bfloat16() for x in student], [y.bfloat16() for y in teacher]
    wide = [x.double() for x in half[0]], [y.double() for y in half[1]]
    assert torch.equal(linear_cka(*half), linear_cka(*wide))


@pytest.mark.plain
def test_a_mask_of_another_shape_is_refused():
    x = states(0, layers=1, width=5)
    with pytest.raises(ValueError, match=r"linear_cka: where \(4,\) must be the leading shape"):
        linear_cka(x, x, where=torch.ones(4, dtype=torch.bool))
