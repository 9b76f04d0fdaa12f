"""Laws of the projection of a vocabulary onto another."""

from __future__ import annotations

import pytest
import torch

from fkd.losses import kl, project_vocabulary

from ..laws import close


def matrix(ids, shares, size):
    dense = torch.zeros(len(ids), size, dtype=shares.dtype)
    for i in range(len(ids)):
        for j, share in zip(ids[i].tolist(), shares[i].tolist(), strict=True):
            if j >= 0:
                dense[i, j] += share
    return dense


def example():
    g = torch.Generator().manual_seed(0)
    ids = torch.tensor([[0, 1], [1, 1], [2, -1], [-1, -1], [3, 0]])
    shares = torch.rand(5, 2, generator=g, dtype=torch.float64)
    return torch.randn(3, 4, 5, generator=g, dtype=torch.float64), ids, shares


def test_it_is_a_product_with_the_matrix_of_shares():
    z, ids, shares = example()
    dense = matrix(ids, shares, 6)
    close(project_vocabulary(z, ids, shares, size=6), z.softmax(-1) @ dense)
    close(project_vocabulary(z, ids, shares, size=6, temperature=2.0), (z / 2).softmax(-1) @ dense)
    assert torch.autograd.gradcheck(
        lambda x, w: project_vocabulary(x, ids, w, size=4),
        (z.requires_grad_(), shares.requires_grad_()),
    )


def test_the_identity_changes_nothing():
    z, _, _ = example()
    ids = torch.arange(5)[:, None]
    r = project_vocabulary(z, ids, torch.ones(5, 1), size=5)
    close(kl(torch.log(r), z), torch.zeros(3, 4), atol=1e-9)


def test_masked_positions_are_zero_and_have_no_gradient():
    z, ids, shares = example()
    where = torch.tensor([[True, False, True, True]] * 3)
    bad = z.masked_fill(~where[..., None], float("nan")).requires_grad_()
    r = project_vocabulary(bad, ids, shares, size=4, where=where)
    assert (r[~where] == 0).all()
    close(r[where], project_vocabulary(z, ids, shares, size=4)[where])
    (grad,) = torch.autograd.grad(r.square().sum(), bad)
    assert (grad[~where] == 0).all() and grad.isfinite().all()


def test_half_precision_is_computed_in_float32():
    z, ids, shares = example()
    r = project_vocabulary(z.bfloat16(), ids, shares.bfloat16(), size=4)
    assert r.dtype == torch.float32
    wide = project_vocabulary(z.bfloat16().double(), ids, shares.bfloat16().double(), size=4)
    close(r.double(), wide, rtol=1e-5, atol=1e-6)


@pytest.mark.plain
def test_messages():
    z, ids, shares = example()
    with pytest.raises(ValueError, match=r"project_vocabulary: ids .* one row of ids"):
        project_vocabulary(z[..., :4], ids, shares, size=4)
    with pytest.raises(ValueError, match="project_vocabulary: size 0"):
        project_vocabulary(z, ids, shares, size=0)
    with pytest.raises(ValueError, match="must have the same shape"):
        project_vocabulary(z, ids, shares[:, :1], size=4)
