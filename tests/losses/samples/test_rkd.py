"""Laws of the losses between the relations of samples."""

from __future__ import annotations

import pytest
import torch
from scipy.spatial.distance import pdist, squareform

from fkd.losses import (
    cka,
    cka_linear,
    cka_rbf,
    correlation_congruence,
    cos_nce,
    infonce,
    irg_edge,
    pkt,
    rkd_angle,
    rkd_distance,
    similarity_preserving,
)

from ..case import normal
from ..features.test_gram import Largest
from ..laws import close

RELATIONS = [similarity_preserving, rkd_distance, rkd_angle, correlation_congruence, pkt, irg_edge]
ALIGNMENTS = [cka_linear, cka_rbf]
MOVED = [rkd_distance, rkd_angle, irg_edge, *ALIGNMENTS]


def features(*shapes, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [normal(*shape)(g) for shape in shapes]


@pytest.mark.parametrize("loss", [*RELATIONS, *ALIGNMENTS])
def test_rotation_and_scale_of_either_side_change_nothing(loss):
    s, t = features((6, 4), (6, 3))
    q, _ = torch.linalg.qr(features((4, 4))[0])
    close(loss(5 * s @ q, 0.1 * t), loss(s, t), atol=1e-9)
    close(loss(s, 5 * s @ q), torch.zeros_like(loss(s, t)), atol=1e-9)


@pytest.mark.parametrize("loss", MOVED)
def test_translation_changes_nothing(loss):
    s, t = features((6, 4), (6, 3))
    close(loss(s + 10, t - 3), loss(s, t), atol=1e-9)


@pytest.mark.parametrize(
    "loss", [similarity_preserving, rkd_distance, rkd_angle, irg_edge, *ALIGNMENTS]
)
def test_symmetric(loss):
    s, t = features((6, 4), (6, 3))
    close(loss(s, t), loss(t, s))


@pytest.mark.parametrize("loss", [*RELATIONS, *ALIGNMENTS])
@pytest.mark.parametrize("kind", ["equal rows", "two equal rows", "zero", "one sample"])
def test_degenerate_batches_have_finite_values_and_gradients(loss, kind):
    s, t = features((4, 3), (4, 3))
    s = {
        "equal rows": s[:1].expand(4, 3),
        "two equal rows": torch.cat([s[:1], s[:3]]),
        "zero": 0 * s,
        "one sample": s[:1],
    }[kind]
    t = t[: len(s)]
    for first, second in ((s, t), (t, s), (s, s)):
        a, b = (x.detach().clone().requires_grad_() for x in (first, second))
        out = loss(a, b)
        grads = torch.autograd.grad(out.sum(), (a, b), materialize_grads=True, allow_unused=True)
        assert out.isfinite().all() and all(g.isfinite().all() for g in grads)


def test_rkd_of_two_samples_is_zero():
    s, t = features((2, 4), (2, 3))
    close(rkd_distance(s, t), torch.zeros(2).double())
    close(rkd_angle(s, t), torch.zeros(2).double())


def test_rkd_distance_golden():
    """Three points at 0, 1, 3 against 0, 2, 3; by hand.

    Distances 1, 3, 2 and 2, 3, 1 have the mean 2, so they differ by 1/2, 0, 1/2.
    """
    s, t = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [2.0], [3.0]])
    close(rkd_distance(s, t), torch.tensor([0.125, 0.25, 0.125]) / 3, rtol=1e-6, atol=0)


def test_rkd_angle_golden():
    """A right angle at the first sample, against a straight one at the second; by hand."""
    s = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    t = torch.tensor([[1.0], [0.0], [2.0]])  # the first lies between the others
    # At the first: cos 0 against -1, twice (ik and ki): 2 * 0.5 / 9.
    close(rkd_angle(s, t)[0], torch.tensor(1 / 9), rtol=1e-5, atol=0)


def test_rkd_angle_needs_no_memory_for_features():
    s, t = (x.float().requires_grad_() for x in features((8, 512), (8, 512)))
    with Largest() as largest:
        rkd_angle(s, t).sum().backward()
    assert largest.numel <= 8 * 512


def test_rkd_angle_is_accurate_far_from_the_origin():
    s, t = features((6, 4), (6, 4))
    want = rkd_angle(s + 100, t)
    close(rkd_angle((s + 100).float(), t.float()).double(), want, rtol=1e-3, atol=1e-6)


def test_irg_edge_has_the_largest_edge_one():
    x = features((5, 3))[0]
    d = squareform(pdist(x.numpy(), "sqeuclidean"))
    point = torch.zeros(5, 1).double()
    close(irg_edge(x, point), torch.from_numpy(((d / d.max()) ** 2).mean(1)))


def test_correlation_congruence_of_high_order_is_the_gaussian_kernel():
    s, t = features((5, 3), (5, 4))
    gaussian = []
    for x in (s, t):
        x = x / x.norm(dim=1, keepdim=True)
        gaussian.append(torch.exp(-0.4 * torch.cdist(x, x) ** 2))
    want = (gaussian[0] - gaussian[1]).square().mean(1)
    close(correlation_congruence(s, t, order=30), want)


def test_infonce_limits():
    s, t = features((5, 3), (5, 3))
    close(infonce(s, t, temperature=1e9), torch.full((5,), 5.0).log().double(), rtol=1e-6)
    close(infonce(torch.eye(5), torch.eye(5), temperature=1e-2), torch.zeros(5), atol=1e-6)


def test_cka_is_one_minus_the_loss_and_in_the_unit_interval():
    s, t = features((6, 4), (6, 3))
    for kernel, loss in (("linear", cka_linear), ("rbf", cka_rbf)):
        similarity = cka(s, t, kernel=kernel)
        assert 0 < similarity < 1
        close(loss(s, t), 1 - similarity)
        close(cka(s, s, kernel=kernel), torch.tensor(1.0).double())


def test_linear_cka_by_covariances():
    s, t = features((6, 4), (6, 3))
    s, t = s - s.mean(0), t - t.mean(0)
    want = (s.mT @ t).norm() ** 2 / ((s.mT @ s).norm() * (t.mT @ t).norm())
    close(cka(s, t), want)


def test_wide_rbf_cka_approaches_linear():
    s, t = features((6, 4), (6, 3))
    close(cka_rbf(s, t, bandwidth=1e3), cka_linear(s, t), rtol=1e-4, atol=1e-5)


def test_constant_features_have_no_alignment():
    s, t = torch.ones(4, 3), features((4, 3))[0].float()
    assert cka(s, t) == 0 and cka_linear(s, t) == 1 and cka_rbf(s, t) == 1


@pytest.mark.plain
def test_messages():
    s = torch.ones(4, 3)
    with pytest.raises(ValueError, match="with the same batch size"):
        rkd_distance(s, s[:2])
    with pytest.raises(ValueError, match=r"where has shape \(4, 3\); \(4,\) is expected"):
        pkt(s, s, where=torch.ones(4, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="kernel is 'cosine'; one of"):
        cka(s, s, kernel="cosine")
    with pytest.raises(ValueError, match=r"torch\.nn\.Linear\(3, 2\)"):
        infonce(s, s[:, :2])


def test_cos_nce_is_least_where_the_teacher_is_met_and_the_others_are_opposite():
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    close(cos_nce(x, 3 * x), torch.zeros(2))
    close(cos_nce(-x, x), torch.full((2,), 4.0))
    close(cos_nce(x[:1], x[:1]), torch.zeros(1))  # without negatives
    close(cos_nce(torch.zeros(2, 2), x), torch.full((2,), 2.0))  # a zero vector has no angle


@pytest.mark.plain
def test_cos_nce_needs_one_width():
    with pytest.raises(ValueError, match=r"^cos_nce: .*torch\.nn\.Linear\(3, 2\)"):
        cos_nce(torch.ones(4, 3), torch.ones(4, 2))
