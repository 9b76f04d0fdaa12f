"""Derivatives of the losses that read distances: both modes, second order, equal rows, offsets."""

from __future__ import annotations

import pytest
import torch
from torch.func import hessian, jacrev, jvp

from fkd.losses import cka, cka_linear, cka_rbf, irg_edge, irg_transformation, rkd_angle
from fkd.losses import rkd_distance as distance
from fkd.losses._shared.geometry import pairwise_distance, square_distance

from ..case import normal
from ..laws import close

# Forward mode loads scripted decompositions, which torch itself calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
READERS = [distance, rkd_angle, irg_edge, cka_rbf]


def features(*shapes):
    g = torch.Generator().manual_seed(0)
    return [normal(*shape)(g) for shape in shapes]


@pytest.mark.parametrize("loss", READERS)
def test_forward_mode_is_reverse_mode(loss):
    s, t, ds, dt = features((5, 3), (5, 4), (5, 3), (5, 4))
    out, tangent = jvp(loss, (s, t), (ds, dt))
    by_s, by_t = jacrev(loss, (0, 1))(s, t)
    want = (by_s * ds).sum((-2, -1)) + (by_t * dt).sum((-2, -1))
    close(out, loss(s, t))
    close(tangent, want)


@pytest.mark.parametrize("loss", READERS)
def test_second_derivatives(loss):
    s, t = features((4, 2), (4, 3))
    s.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: loss(x, t), s)
    (first,) = torch.autograd.grad(loss(s, t).sum(), s, create_graph=True)
    (twice,) = torch.autograd.grad(first.square().sum(), s)
    plain = s.detach()
    h = hessian(lambda x: loss(x, t).sum())(plain).reshape(plain.numel(), -1)
    close(twice.flatten(), 2 * h @ first.detach().flatten())


def test_equal_rows_are_at_distance_zero_with_gradient_zero():
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]], requires_grad=True)
    (grad,) = torch.autograd.grad(pairwise_distance(x).sum(), x, create_graph=True)
    assert (pairwise_distance(x) == 0).all() and (grad == 0).all()
    (twice,) = torch.autograd.grad(grad.sum(), x, allow_unused=True, materialize_grads=True)
    assert (twice == 0).all()


@pytest.mark.parametrize("loss", READERS)
def test_equal_rows_among_others_are_finite_to_second_order(loss):
    s, t = features((5, 3), (5, 3))
    s[1] = s[0]
    assert hessian(lambda x: loss(x, t).sum())(s).isfinite().all()
    _, tangent = jvp(lambda x: loss(x, t), (s,), (torch.ones_like(s),))
    close(tangent, torch.zeros_like(tangent), atol=1e-9)  # a common shift moves no distance


def test_the_curvature_of_a_square_distance_is_that_of_the_square():
    """Also where two rows are equal: |x - y|^2 has the second derivative 2 there."""
    x = torch.tensor([[1.0], [1.0]], dtype=torch.float64)
    h = hessian(lambda y: square_distance(y)[0, 1])(x).reshape(2, 2)
    close(h, torch.tensor([[2.0, -2.0], [-2.0, 2.0]]).double())


@pytest.mark.parametrize("loss", READERS)
def test_float32_far_from_the_origin(loss):
    s, t = (x.float() + 100 for x in features((6, 4), (6, 3)))
    s.requires_grad_()
    (grad,) = torch.autograd.grad(loss(s, t).sum(), s)
    wide = s.detach().double().requires_grad_()
    (want,) = torch.autograd.grad(loss(wide, t.double()).sum(), wide)
    assert (grad.double() - want).norm() < 2e-5 * want.norm()


@pytest.mark.parametrize("loss", [*READERS, irg_transformation, cka, cka_linear])
def test_a_batch_of_no_samples_has_no_loss(loss):
    none = torch.zeros(0, 3, requires_grad=True)
    others = [torch.zeros(0, 3)] * (3 if loss is irg_transformation else 1)
    out = loss(none, *others)
    assert out.shape in ((0,), ()) and (out == 0).all()
    (grad,) = torch.autograd.grad(out.sum(), none)
    assert grad.shape == (0, 3)
