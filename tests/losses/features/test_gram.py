"""Laws of the losses between inner products of feature maps."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fkd.losses import affinity, fsp, gram, ickd, nst
from tests.trees import tree_leaves

from ..case import normal
from ..laws import close


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor made inside."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return out


def maps(*shapes, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [normal(*shape)(g) for shape in shapes]


def test_nst_forms_nothing_larger_than_maps_and_products():
    batch, channels, places = 2, 24, 64
    s, t = (x.requires_grad_() for x in maps((batch, channels, 8, 8), (batch, channels, 8, 8)))
    with Largest() as largest:
        nst(s, t).sum().backward()
    assert largest.numel == batch * channels * max(channels, places)
    assert largest.numel < batch * channels * channels * places


def test_nst_equals_the_broadcast_kernel():
    s, t = maps((2, 3, 4), (2, 5, 4))
    u, v = (x / x.norm(dim=-1, keepdim=True) for x in (s, t))

    def mean(a, b):
        return ((a[:, :, None] * b[:, None]).sum(-1) ** 2).mean((1, 2))

    close(nst(s, t), mean(u, u) + mean(v, v) - 2 * mean(u, v))


@pytest.mark.parametrize("loss", [nst, affinity])
def test_order_of_the_channels_does_not_matter(loss):
    s, t = maps((2, 3, 4), (2, 5, 4))
    close(loss(s.flip(1), t.roll(2, 1)), loss(s, t))


@pytest.mark.parametrize("loss", [gram, ickd])
def test_order_of_the_places_does_not_matter(loss):
    s, t = maps((2, 3, 4), (2, 3, 5))
    close(loss(s.flip(2), t.roll(2, 2)), loss(s, t))


def test_affinity_ignores_rotations_of_the_channels():
    s, t = maps((2, 4, 6), (2, 4, 6))
    q, _ = torch.linalg.qr(maps((4, 4))[0])
    close(affinity(torch.einsum("cd,bdp->bcp", q, s), t), affinity(s, t))


def test_fsp_of_one_layer_is_gram():
    s, t = maps((2, 3, 4, 4), (2, 3, 4, 4))
    close(fsp(s, t, s, t, convention="code"), gram(s, t))
    close(fsp(s, t, s, t), 9 * gram(s, t))


def test_fsp_is_zero_for_equal_models():
    a, b = maps((2, 3, 4, 4), (2, 5, 2, 2))
    assert (fsp(a, a.clone(), b, b.clone()) == 0).all()


@pytest.mark.parametrize("loss", [gram, nst, ickd, affinity])
def test_dead_maps_have_a_finite_gradient(loss):
    s = torch.zeros(2, 3, 4, requires_grad=True)
    out = loss(s, torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)))
    (grad,) = torch.autograd.grad(out.sum(), s)
    assert out.isfinite().all() and grad.isfinite().all()


@pytest.mark.plain
def test_messages():
    a, b = torch.ones(2, 3, 4, 4), torch.ones(2, 5, 4, 4)
    with pytest.raises(ValueError, match=r"fsp: student_second .* the same number of channels"):
        fsp(a, a, a, b)
    with pytest.raises(ValueError, match="ickd: convention is 'mean'"):
        ickd(a, a, convention="mean")
    with pytest.raises(ValueError, match=r"gram: .* the same number of channels"):
        gram(a, b)
    with pytest.raises(ValueError, match=r"fsp: student_first \(2, 3, 4, 4\) and student_second"):
        fsp(a, a, a.flatten(2), a.flatten(2))
    with pytest.raises(ValueError, match=r"fsp: student_first .* the same batch size"):
        fsp(a[:1], a[:1], a, a)
