"""The correlations of feature maps (DIST+) where features are small, large, or the same."""

from __future__ import annotations

import pytest
import torch

from fkd.losses import dist_channel, dist_spatial

from ..laws import close, gradients

LOSSES = [dist_channel, dist_spatial]


def maps(scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    s, t = (torch.randn(2, 5, 3, 4, generator=g) for _ in range(2))
    return scale * s, scale * t


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("scale", [1e-15, 1e-8, 1e-4, 1.0, 1e8, 1e15])
def test_any_scale_has_the_value_and_the_gradient_of_float64(loss, scale):
    s, t = maps(scale)
    out, grads = gradients(loss, (s, t), {})
    want, wants = gradients(loss, (s.double(), t.double()), {})
    close(out.double(), want, rtol=1e-4, atol=1e-5)
    for grad, exact in zip(grads, wants, strict=True):
        assert grad.isfinite().all() and (grad != 0).any()
        close(scale * grad.double(), scale * exact, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_near_convergence_it_is_a_square_not_a_cancellation(loss):
    s, _ = maps()
    t = s + 1e-4 * maps()[1]
    want = loss(s.double(), t.double())
    close(loss(s, t).double(), want, rtol=1e-2, atol=0.0)
    assert (loss(s, s) == 0).all() and (loss(s, 3 * s + 1) >= 0).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_constant_map_has_no_correlation_and_no_gradient(loss):
    s, t = torch.full((2, 5, 3, 4), 0.1), maps()[1]
    out, (by_s, by_t) = gradients(loss, (s, t), {})
    close(out, torch.ones(2))
    assert (by_s == 0).all() and (by_t == 0).all()


@pytest.mark.plain
@pytest.mark.parametrize("loss", LOSSES)
def test_maps_without_space_are_refused(loss):
    with pytest.raises(ValueError, match=f"^{loss.__name__}: student_features "):
        loss(torch.ones(2, 3), torch.ones(2, 3))
