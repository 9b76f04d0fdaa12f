"""Laws of activation boundaries, margins, attention weights, densities and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm, truncnorm

from fkd.losses import (
    activation_boundary,
    afd,
    afds,
    attention_transfer,
    factor_transfer,
    fbkd_attention,
    fbkd_masked,
    jacobian_matching,
    l1,
    log_distance,
    margin_relu,
    mgd,
    mse,
    negative_mean,
    pad,
    partial_l2,
    pkd,
    semckd,
    vid,
)

from ..case import normal
from ..laws import close


def maps(*shapes, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [normal(*shape)(g) for shape in shapes]


def test_boundary_is_zero_on_the_right_side_by_the_margin():
    t = maps((3, 8))[0]
    close(activation_boundary(1.5 * t.sign(), t), torch.zeros(3).double())
    close(activation_boundary(-t.sign(), t), torch.full((3,), 8 * 4.0).double())


def test_boundary_reads_only_the_sign_of_the_teacher():
    s, t = maps((3, 8), (3, 8))
    close(activation_boundary(s, 100 * t), activation_boundary(s, t))


def test_partial_l2_of_a_positive_teacher_is_the_squared_distance():
    s, t = maps((3, 8), (3, 8))
    close(partial_l2(s, t.abs()), (s - t.abs()).square().sum(-1))
    assert (partial_l2(-10 - t.abs(), -t.abs()) == 0).all()


def test_negative_mean_is_that_of_the_truncated_normal():
    mean, std = np.array([-0.5, 0.0, 1.0, 3.0]), np.array([0.3, 1.0, 2.0, 1.0])
    want = truncnorm.mean(-np.inf, -mean / std, loc=mean, scale=std)
    got = negative_mean(torch.from_numpy(mean), torch.from_numpy(std))
    close(got, torch.from_numpy(want), rtol=1e-7)


def test_negative_mean_is_finite_where_negatives_are_rare():
    got = negative_mean(torch.tensor([9.99, 10.01, 1000.0]), torch.tensor([1.0, 1.0, 2.0]))
    near = truncnorm.mean(-np.inf, -9.99, loc=9.99)
    far = truncnorm.mean(-np.inf, -10.01, loc=10.01)
    close(got, torch.tensor([near, far, -0.004]), rtol=1e-4, atol=0)
    assert negative_mean(torch.tensor([-90.0]), torch.tensor([1.0])).item() == -90


def test_margin_relu_cuts_each_channel_at_its_margin():
    x = maps((2, 3, 4, 4))[0]
    margin = torch.tensor([-0.1, -0.5, -9.0]).double()
    want = torch.maximum(x, margin.reshape(1, 3, 1, 1))
    assert torch.equal(margin_relu(x, margin), want)


def test_generated_and_factor_distances_are_sums_of_the_hidden_ones():
    s, t = maps((3, 2, 4), (3, 2, 4))
    close(mgd(s, t), 8 * mse(s.flatten(1), t.flatten(1)))
    close(factor_transfer(s, t), 8 * l1(s.flatten(1), t.flatten(1), normalize=True))
    close(factor_transfer(s, t, norm="l2"), pkd(s.flatten(1), t.flatten(1)))
    close(jacobian_matching(s, t), pkd(s.flatten(1), t.flatten(1)))


def test_attention_of_one_leaves_the_plain_loss():
    s, t = maps((3, 2, 4), (3, 2, 4))
    one = torch.ones(3).double()
    close(semckd(s, t, attention=one), mse(s.flatten(1), t.flatten(1)))
    close(afd(s, t, attention=one), attention_transfer(s, t, convention="code"))
    close(afds(s, 7 * s, attention=torch.ones(3, 2).double()), torch.zeros(3).double(), atol=1e-12)


@pytest.mark.parametrize("loss, shape", [(semckd, (3,)), (afd, (3,)), (afds, (3, 2))])
def test_attention_receives_its_gradient_and_none_where_masked(loss, shape):
    s, t = maps((3, 2, 4), (3, 2, 4))
    attention = torch.full(shape, 0.5).double().requires_grad_()
    where = torch.tensor([True, False, True])
    with torch.no_grad():
        attention[1] = torch.nan
    loss(s, t, attention=attention, where=where).sum().backward()
    assert (attention.grad[1] == 0).all()
    assert (attention.grad[0] > 0).all()


def test_fbkd_masks_of_uniform_maps_are_one():
    s, t = torch.ones(2, 3, 5), -torch.ones(2, 3, 5)
    close(fbkd_masked(s, t), (s - t).flatten(1).norm(dim=-1), rtol=1e-6, atol=0)
    assert (fbkd_attention(s, t) == 0).all()


def test_fbkd_with_hot_masks_is_the_plain_distance():
    s, t = maps((2, 3, 5), (2, 3, 5))
    close(fbkd_masked(s, t, temperature=1e9), (s - t).flatten(1).norm(dim=-1), rtol=1e-6)


def test_vid_is_smallest_at_the_true_variance():
    mean, noise = maps((1, 2, 4000), (1, 2, 4000))
    noise = noise / noise.square().mean(-1, keepdim=True).sqrt()
    scale = torch.tensor([0.5, 3.0]).double()
    log_scale = scale.log().requires_grad_()
    teacher = mean + scale[:, None] * noise
    (grad,) = torch.autograd.grad(vid(mean, teacher, log_scale=log_scale).sum(), log_scale)
    close(grad, torch.zeros(2).double(), atol=1e-9)


def test_vid_is_the_gaussian_density():
    s, t = maps((2, 3, 4), (2, 3, 4))
    got = vid(s, t, log_scale=torch.zeros(3).double())
    want = -norm.logpdf(t.numpy() - s.numpy()).mean((1, 2)) - 0.5 * np.log(2 * np.pi)
    close(got, torch.from_numpy(want))


def test_pad_with_unit_variance_is_the_mean_squared_error():
    s, t = maps((3, 8), (3, 8))
    close(pad(s, t, log_variance=torch.zeros(3, 8).double()), mse(s, t), rtol=1e-5)
    assert pad(s, t, log_variance=torch.full((3, 8), -80.0).double()).isfinite().all()


def test_log_distance_of_exponent_two_is_the_log_of_the_squared_distance():
    s, t = maps((3, 8), (3, 8))
    close(log_distance(s, t, exponent=2.0), (8 * mse(s, t)).log())


def test_log_distance_at_equality_has_no_gradient():
    s = maps((3, 8))[0].requires_grad_()
    out = log_distance(s, s.detach())
    (grad,) = torch.autograd.grad(out.sum(), s)
    close(out, torch.full((3,), 1e-12).double().log())
    assert (grad == 0).all()


def test_jacobian_matching_trains_through_second_derivatives():
    w = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def loss(v):
        x = torch.tensor([[0.1, 0.2, 0.3]], dtype=torch.float64)
        student = torch.func.vmap(torch.func.grad(lambda row: torch.tanh(row @ v)))(x)
        return jacobian_matching(student, w[None]).sum()

    v = torch.tensor([0.3, 0.4, -0.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (v,))


@pytest.mark.plain
def test_messages():
    s = torch.ones(2, 3, 4)
    with pytest.raises(ValueError, match=r"attention has shape \(3,\); \(2,\) is expected"):
        semckd(s, s, attention=torch.ones(3))
    with pytest.raises(ValueError, match=r"log_scale has shape \(4,\)"):
        vid(s, s, log_scale=torch.ones(4))
    with pytest.raises(ValueError, match=r"log_variance has shape \(2, 3\)"):
        pad(s, s, log_variance=torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"margin has shape \(4,\)"):
        margin_relu(s, torch.ones(4))
    with pytest.raises(ValueError, match=r"mgd: .* must have the same shape"):
        mgd(s, torch.ones(2, 4, 3))
