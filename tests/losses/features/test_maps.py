"""Laws of the losses between feature maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fkd.losses import attention_transfer, cat_kd, cwd, hcl, kl, pearson
from fkd.losses._features.maps import pooled

from ..case import normal
from ..laws import close


def maps(*shapes, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [normal(*shape)(g) for shape in shapes]


@pytest.mark.parametrize("size", [(4, 3), (5, 7), (1, 1), (9, 10)])
def test_pooling_is_that_of_torch(size):
    (x,) = maps((2, 3, 9, 10))
    close(pooled(x, size), F.adaptive_avg_pool2d(x, size))


@pytest.mark.parametrize("convention", ["paper", "code"])
def test_attention_transfer_ignores_scale_and_order_of_channels(convention):
    s, t = maps((3, 4, 2, 5), (3, 6, 2, 5))
    want = attention_transfer(s, t, convention=convention)
    close(attention_transfer(7 * s.flip(1), -t, convention=convention), want)


def test_attention_transfer_conventions_agree():
    s, t = maps((3, 4, 2, 5), (3, 6, 2, 5))
    paper = attention_transfer(s, t)
    close(attention_transfer(s, t, convention="code"), paper**2 / 10)


def test_attention_transfer_pools_the_larger_map_on_either_side():
    s, t = maps((3, 4, 4, 4), (3, 4, 2, 2))
    want = attention_transfer(F.avg_pool2d(s, 2), t)
    close(attention_transfer(s, t, pool=True), want)
    close(attention_transfer(t, s, pool=True), want)


@pytest.mark.parametrize("dead", ["student", "teacher", "both"])
def test_attention_transfer_of_dead_maps(dead):
    s, t = maps((2, 3, 4), (2, 3, 4))
    s, t = (0 * s if dead != "teacher" else s), (0 * t if dead != "student" else t)
    s.requires_grad_()
    out = attention_transfer(s, t)
    (grad,) = torch.autograd.grad(out.sum(), s)
    close(out, torch.full((2,), 0.0 if dead == "both" else 1.0).double())
    assert grad.isfinite().all()


def test_cwd_is_kl_over_space_and_ignores_shifts_of_a_channel():
    s, t = maps((3, 2, 4, 5), (3, 2, 4, 5))
    want = kl(s.flatten(2), t.flatten(2), temperature=4.0).mean(-1)
    close(cwd(s, t, temperature=4.0), want)
    shift = torch.tensor([3.0, -2.0]).reshape(1, 2, 1, 1)
    close(cwd(s + shift, t - shift, temperature=4.0), want)


def test_cat_kd_ignores_the_scale_of_a_class():
    s, t = maps((3, 2, 4, 4), (3, 2, 4, 4))
    scale = torch.tensor([3.0, 0.5]).reshape(1, 2, 1, 1)
    close(cat_kd(scale * s, t / scale), cat_kd(s, t))


def test_hcl_without_levels_is_the_mean_squared_error():
    s, t = maps((3, 2, 4, 4), (3, 2, 4, 4))
    close(hcl(s, t, levels=()), (s - t).square().mean((1, 2, 3)))
    close(hcl(s, s + 2), torch.full((3,), 4.0).double())


def test_pearson_is_one_minus_the_mean_correlation_of_the_channels():
    s, t = maps((4, 3, 2, 2), (4, 3, 2, 2))
    r = [np.corrcoef(s[:, c].flatten(), t[:, c].flatten())[0, 1] for c in range(3)]
    close(pearson(s, t).mean(), torch.tensor(1 - np.mean(r)), rtol=1e-5)
    close(pearson(3 * s - 1, 0.1 * t + 2), pearson(s, t), rtol=1e-4)


def test_pearson_of_constant_channels_is_finite():
    s, t = torch.ones(2, 3, 4, requires_grad=True), maps((2, 3, 4))[0].float()
    out = pearson(s, t)
    (grad,) = torch.autograd.grad(out.sum(), s)
    close(out.mean(), torch.tensor(0.5), rtol=1e-4)
    assert grad.isfinite().all()


@pytest.mark.plain
def test_messages():
    s = torch.ones(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"of the same space\. Pool the larger"):
        attention_transfer(s, torch.ones(2, 3, 2, 2))
    with pytest.raises(ValueError, match="convention is 'mean'; one of"):
        attention_transfer(s, s, convention="mean")
    with pytest.raises(ValueError, match=r"fkd\.trainable\(torch\.nn\.Conv2d\(3, 5, 1\)\)"):
        cwd(s, torch.ones(2, 5, 4, 4))
    with pytest.raises(ValueError, match="with the same batch size"):
        hcl(s, s[:1])
