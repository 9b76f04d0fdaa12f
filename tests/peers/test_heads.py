"""Language-model losses beside those of liger-kernel 0.8 that run without Triton."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fkd.losses import cross_entropy, jsd, kl, reverse_kl

chunked: Any = pytest.importorskip("liger_kernel.chunked_loss.jsd_loss")


def two(*shape):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=g, dtype=torch.float64) for _ in range(2)]


def same(a, b, rtol=1e-9):
    torch.testing.assert_close(a, b, rtol=rtol, atol=1e-12)


def theirs(s, t, **options):
    return chunked.LigerFusedLinearJSDFunction.distillation_loss_fn(s, t, **options)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_jsd(beta):
    s, t = two(6, 11)
    same(jsd(s, t, beta=beta).sum(), theirs(s, t, beta=beta))


def test_the_ends_are_the_two_directions_of_kl():
    """Theirs jumps there: the limit of its values at 0 and 1 is 0, as ours is."""
    s, t = two(6, 11)
    same(kl(s, t).sum(), theirs(s, t, beta=0))
    same(reverse_kl(s, t).sum(), theirs(s, t, beta=1))
    assert theirs(s, t, beta=1e-9) < 1e-6
    same(jsd(s, t, beta=0.0).sum(), torch.tensor(0.0).double())


def test_an_excluded_class_is_nan_there():
    """0 * (-inf - -inf); here a class that both models exclude counts 0."""
    s, t = two(6, 11)
    s[:, 3] = t[:, 3] = -torch.inf
    keep = [i for i in range(11) if i != 3]
    assert theirs(s, t, beta=0.5).isnan()
    same(jsd(s, t).sum(), jsd(s[:, keep], t[:, keep]).sum())


def test_the_sum_with_the_labels():
    """Both parts are divided by the tokens with a label, and T^2 is not there."""
    (x, y), (w, v) = two(6, 4), two(11, 4)
    labels = torch.tensor([3, -100, 5, 0, -100, 10])
    loss = chunked.LigerFusedLinearJSDLoss(
        weight_hard_loss=0.3, weight_soft_loss=0.7, beta=0.5, temperature=2.0, compiled=False
    )
    value = loss(x, w, y, v, labels)
    s, t = x @ w.T, y @ v.T
    where = labels != -100
    soft = jsd(s, t, temperature=2.0, where=where).sum() / 4 / where.sum()
    hard = cross_entropy(s, labels).sum() / where.sum()
    same(0.3 * hard + 0.7 * soft, value.double(), rtol=1e-5)
