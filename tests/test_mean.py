"""Laws of the one reduction."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fkd import Mean, mean
from fkd._base.mean import divide

floats = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=12)


@given(floats, st.data())
def test_however_a_batch_is_cut_its_mean_is_the_same(values, data):
    x = torch.tensor(values, dtype=torch.float64)
    where = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(x), max_size=len(x))))
    cut = data.draw(st.integers(0, len(x)))
    parts = mean(x[:cut], where=where[:cut]).merge(mean(x[cut:], where=where[cut:]))
    torch.testing.assert_close(parts.value, mean(x, where=where).value)


@given(floats)
def test_it_is_the_arithmetic_mean(values):
    x = torch.tensor(values, dtype=torch.float64)
    torch.testing.assert_close(mean(x).value, x.mean())


def test_a_mask_of_integers_is_a_mask():
    x = torch.tensor([1.0, 2.0, 9.0])
    assert mean(x, where=torch.tensor([1, 1, 0])).value == 1.5


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_what_does_not_count_has_no_value_and_no_gradient(poison):
    x = torch.tensor([1.0, poison, 3.0], requires_grad=True)
    found = mean(x, where=torch.tensor([True, False, True]))
    found.value.backward()
    assert found.value == 2.0
    assert x.grad.tolist() == [0.5, 0.0, 0.5]


def test_nothing_that_counts_gives_zero_and_a_zero_gradient():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    found = mean(x, where=torch.zeros(2, dtype=torch.bool))
    found.value.backward()
    assert found == Mean(torch.tensor(0.0), torch.tensor(0.0))
    assert found.value == 0
    assert x.grad.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    x = torch.full((5000,), 1.0, dtype=dtype)
    found = mean(x)
    assert found.total.dtype is torch.float32
    assert found.total == 5000


def test_float64_stays():
    assert mean(torch.ones(2, dtype=torch.float64)).count.dtype is torch.float64


@pytest.mark.parametrize("shape", [(), (3,), (2, 1), (1, 3)])
def test_a_mask_of_another_shape_is_refused_not_broadcast(shape):
    with pytest.raises(ValueError, match=r"mean: where .* must have the shape .*\(2, 3\)"):
        mean(torch.ones(2, 3), where=torch.ones(shape, dtype=torch.bool))


def test_a_fractional_count_divides():
    assert divide(torch.tensor(3.0), torch.tensor(0.5)) == 6.0
