"""The battery, continued: temperatures far from those that anyone publishes."""

from __future__ import annotations

import inspect

import pytest
import torch

from .case import Case
from .laws import cast, gradients
from .table import CASES
from .test_laws import over

SOFTENED = ["temperature" in inspect.signature(c.function).parameters for c in CASES]


def refused_or_right(case: Case, temperature: float) -> str:
    """What becomes of a loss in float32 at a temperature: `"refused"` with words, or its value and
    gradient are those of float64."""
    kwargs = {**case.kwargs, "temperature": temperature}
    args = cast(case.make(), torch.float32)
    wide = cast(args, torch.float64), cast(kwargs, torch.float64)
    try:
        got, grads = gradients(case.loss, args, cast(kwargs, torch.float32))
    except ValueError as error:
        assert "temperature" in str(error), error
        return "refused"
    want, want_grads = gradients(case.loss, *wide)
    assert got.isfinite().all()
    assert (got - want).abs().max() < 0.05 * want.abs().max() + 1e-6
    student, want_student = grads[0], want_grads[0]
    assert (student - want_student).abs().max() <= 5e-3 * want_student.abs().max() + 1e-7
    assert all(g.isfinite().all() for g in grads)
    return "right"


@over(SOFTENED)
@pytest.mark.parametrize("temperature", [0.3, 50.0, 250.0])
def test_usual_orders_of_magnitude(case: Case, temperature: float) -> None:
    refused_or_right(case, temperature)


@over(SOFTENED)
@pytest.mark.parametrize("temperature", [1e5, 1e8, 1e20, 1e300])
def test_no_value_that_rounding_has_left(case: Case, temperature: float) -> None:
    kwargs = {**case.kwargs, "temperature": temperature}
    args = cast(case.make(), torch.float32)
    try:
        got, grads = gradients(case.loss, args, cast(kwargs, torch.float32))
    except ValueError as error:
        assert "temperature" in str(error), error
        return
    assert got.isfinite().all() and all(g.isfinite().all() for g in grads)
    if temperature <= 1e8:
        refused_or_right(case, temperature)


@over(SOFTENED)
@pytest.mark.parametrize("temperature", [2.0, 1e4])
def test_a_temperature_in_a_tensor_is_the_number(case: Case, temperature: float) -> None:
    args = cast(case.make(), torch.float32)
    kwargs = cast(case.kwargs, torch.float32)
    try:
        expected = gradients(case.loss, args, {**kwargs, "temperature": temperature})
    except ValueError as error:
        with pytest.raises(ValueError, match="temperature"):
            gradients(case.loss, args, {**kwargs, "temperature": torch.tensor(temperature)})
        assert "temperature" in str(error), error
        return
    got = gradients(case.loss, args, {**kwargs, "temperature": torch.tensor(temperature)})
    torch.testing.assert_close(got[0], expected[0], rtol=1e-3, atol=1e-6)
    for a, b in zip(got[1], expected[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
