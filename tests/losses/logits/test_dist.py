"""Invariances and edges of the correlation losses, of MLKD, and of SKD."""

from __future__ import annotations

import pytest
import torch

from fkd.losses import (
    dist,
    dist_channel,
    dist_inter,
    dist_intra,
    dist_spatial,
    kl,
    mlkd_batch,
    mlkd_class,
    mlkd_instance,
    skd_direction,
)

from ..laws import close


def two(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    s, t = (torch.randn(*shape, generator=g, dtype=torch.float64) for _ in range(2))
    return s, t


def test_dist_is_made_of_its_parts() -> None:
    s, t = two(5, 7)
    inter, intra = (
        dist_inter(s, t, temperature=2.0).mean(),
        dist_intra(s, t, temperature=2.0).mean(),
    )
    close(dist(s, t, temperature=2.0), inter + intra)
    close(dist(s, t, beta=0.0, gamma=3.0, temperature=2.0), 3 * intra)
    close(dist(s, t, temperature=2.0, scale=True), 4 * (inter + intra))


def test_dist_inter_ignores_scale_and_shift_of_probabilities() -> None:
    s, t = two(5, 7)
    p = t.softmax(-1)
    close(dist_inter(s, (0.5 * p + 0.5 / 7).log()), dist_inter(s, t))


@pytest.mark.parametrize("loss", [dist_inter, dist_intra, dist, skd_direction, mlkd_batch])
def test_constant_vectors_and_a_batch_of_one_have_finite_gradients(loss) -> None:
    for s in (torch.zeros(3, 4), torch.randn(1, 4, generator=torch.Generator().manual_seed(0))):
        s = s.clone().requires_grad_()
        t = torch.randn(s.shape, generator=torch.Generator().manual_seed(1))
        for teacher in (t, s.detach().clone()):
            out = loss(s, teacher)
            assert out.isfinite().all()
            assert torch.autograd.grad(out.sum(), s)[0].isfinite().all()


def test_dist_intra_of_a_single_position_is_one() -> None:
    s, t = two(1, 4)
    close(dist_intra(s, t), torch.ones(4).double())


def test_dist_plus_ignores_scale_and_shift_of_features() -> None:
    s, t = two(2, 4, 3, 3)
    close(dist_channel(2 * s + 1, t), dist_channel(s, t))
    close(dist_spatial(2 * s + 1, t), dist_spatial(s, t))
    close(dist_channel(-s, s), 2 * torch.ones(2).double())
    close(dist_spatial(s.repeat(1, 2, 1, 1), s), torch.zeros(2).double())


def test_mlkd_instance_is_a_sum_of_kl() -> None:
    s, t = two(5, 7)
    close(mlkd_instance(s, t, temperatures=(2.0,)), kl(s, t, temperature=2.0))
    with pytest.raises(ValueError, match="temperatures is empty"):
        mlkd_instance(s, t, temperatures=())


def test_mlkd_relations_ignore_an_order() -> None:
    s, t = two(5, 7)
    close(mlkd_batch(s.flip(-1), t), mlkd_batch(s, t))
    close(mlkd_class(s.flip(0), t), mlkd_class(s, t))


def test_skd_direction_ignores_length_and_rotation() -> None:
    s, t = two(5, 7)
    scale = torch.arange(1.0, 6.0, dtype=torch.float64)[:, None]
    close(skd_direction(scale * s, t), skd_direction(s, t))
    rotation = torch.linalg.qr(two(7, 7)[0])[0]
    close(skd_direction(s @ rotation, t), skd_direction(s, t))


@pytest.mark.plain
def test_messages() -> None:
    with pytest.raises(ValueError, match="dist_inter: student_logits"):
        dist_inter(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="dist_spatial: student_features"):
        dist_spatial(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5))
