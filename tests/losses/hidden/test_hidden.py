"""Laws of the losses between hidden states."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fkd.losses import cosine, l1, l2, mse, pkd, smooth_l1

from ..case import normal
from ..laws import close

ALL = [mse, l1, l2, smooth_l1, cosine, pkd]


def vectors(*shape):
    g = torch.Generator().manual_seed(0)
    return normal(*shape)(g), normal(*shape)(g)


def rotation(size):
    q, _ = torch.linalg.qr(vectors(size, size)[0])
    return q


@pytest.mark.parametrize("loss", [mse, l2, cosine, pkd])
def test_rotating_both_sides_changes_nothing(loss):
    s, t = vectors(4, 6)
    q = rotation(6)
    close(loss(s @ q, t @ q), loss(s, t))


@pytest.mark.parametrize("loss", ALL)
def test_symmetric(loss):
    s, t = vectors(4, 6)
    close(loss(s, t), loss(t, s))


@pytest.mark.parametrize("loss", [cosine, pkd])
def test_length_does_not_matter(loss):
    s, t = vectors(4, 6)
    close(loss(1e-3 * s, 1e3 * t), loss(s, t))


def test_neighbours():
    s, t = vectors(4, 6)
    close(mse(s, t), F.mse_loss(s, t, reduction="none").mean(-1))
    close(l2(s, t) ** 2, 6 * mse(s, t))
    close(pkd(s, t), 2 * cosine(s, t))
    close(pkd(s, t), l2(s, t, normalize=True) ** 2)
    close(cosine(s, t), 1 - F.cosine_similarity(s, t, dim=-1))
    close(smooth_l1(s, t, beta=0.7), F.smooth_l1_loss(s, t, reduction="none", beta=0.7).mean(-1))


def test_smooth_l1_limits():
    s, t = vectors(4, 6)
    close(1e6 * smooth_l1(s, t, beta=1e6), 0.5 * mse(s, t))
    close(smooth_l1(s, t, beta=1e-9), l1(s, t), atol=1e-8)


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("s, t", [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0)])
def test_zero_vectors_have_finite_values_and_gradients(loss, s, t):
    s, t = (torch.full((2, 3), x, requires_grad=True) for x in (s, t))
    out = loss(s, t)
    grads = torch.autograd.grad(out.sum(), (s, t))
    assert out.isfinite().all()
    assert all(g.isfinite().all() and g.abs().max() < 10 for g in grads)


def test_cosine_of_a_zero_vector_is_zero():
    zero, one = torch.zeros(1, 3), torch.ones(1, 3)
    assert cosine(zero, one).item() == cosine(one, zero).item() == cosine(zero, zero).item() == 1
    assert pkd(zero, zero).item() == 0


def test_cosine_is_accurate_near_equality():
    s = vectors(1, 6)[0].float()
    t = s + 1e-4 * vectors(1, 6)[1].float()
    want = cosine(s.double(), t.double())
    close(cosine(s, t).double(), want, rtol=1e-3, atol=0)


@pytest.mark.plain
@pytest.mark.parametrize("loss", ALL)
def test_other_width_suggests_an_adapter(loss):
    with pytest.raises(ValueError, match=r"map \w+ first.*torch\.nn\.Linear\(312, 768\)"):
        loss(torch.ones(2, 312), torch.ones(2, 768))


@pytest.mark.plain
def test_other_length_is_refused_without_an_adapter():
    with pytest.raises(ValueError, match=r"\(2, 3, 8\) and .* \(2, 1, 8\)") as error:
        mse(torch.ones(2, 3, 8), torch.ones(2, 1, 8))
    assert "Linear" not in str([error.value, *getattr(error.value, "__notes__", [])])


@pytest.mark.plain
def test_mask_of_fewer_axes_is_refused():
    with pytest.raises(ValueError, match=r"where has shape \(2,\); \(2, 3\) is expected"):
        mse(torch.ones(2, 3, 8), torch.ones(2, 3, 8), where=torch.ones(2, dtype=torch.bool))


@pytest.mark.plain
def test_token_ids_are_refused():
    with pytest.raises(ValueError, match=r"student_hidden has dtype torch\.int64"):
        mse(torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3))
