"""Losses beside those of torchdistill 1.1.5, and where they differ."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fkd.losses import (
    activation_boundary,
    attention_transfer,
    correlation_congruence,
    dist,
    dist_channel,
    dist_spatial,
    factor_transfer,
    fsp,
    hcl,
    ickd,
    kl,
    log_distance,
    pad,
    pkt,
    rkd_angle,
    rkd_distance,
    similarity_preserving,
    skd_direction,
    standardize,
    vid,
)

peer: Any = pytest.importorskip("torchdistill.losses.mid_level")

BOTH = ("m", "output", "m", "output")
PAIR = {"one": {k: {"path": "m", "io": "output"} for k in ("student", "teacher")}}


def two(*shape):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=g, dtype=torch.float64) for _ in range(2)]


def theirs(loss, student, teacher):
    """Their forward, on the outputs of one module of each model."""
    return loss({"m": {"output": student}}, {"m": {"output": teacher}})


def same(a, b, rtol=1e-9):
    torch.testing.assert_close(a, b, rtol=rtol, atol=1e-12)


def test_kl_without_a_task_loss_is_not_scaled():
    """Their T^2 is there only together with labels. (Without an alpha it cannot be made.)"""
    s, t = two(5, 7)
    loss = peer.KDLoss(*BOTH, temperature=4.0, alpha=0.0)
    same(kl(s, t, temperature=4.0).mean() / 16, theirs(loss, s, t))


def test_kl_of_tokens_differs():
    """Their softmax is over axis 1, which for `[batch, length, vocab]` are the tokens."""
    s, t = two(2, 3, 7)
    loss = peer.KDLoss(*BOTH, temperature=1.0, alpha=0.0)
    ours = kl(s.transpose(1, 2), t.transpose(1, 2)).sum() / 2
    same(ours, theirs(loss, s, t))
    assert abs(kl(s, t).sum() / 2 - theirs(loss, s, t)) > 0.1


def test_standardised_logits():
    s, t = two(5, 7)
    loss = peer.LogitStdKDLoss(*BOTH, temperature=2.0, alpha=0.0)
    same(kl(standardize(s), standardize(t), temperature=2.0).mean() / 4, theirs(loss, s, t))


def test_dist_is_the_published_code_with_its_scale():
    s, t = two(5, 7)
    loss = peer.DISTLoss(*BOTH, beta=1.5, gamma=0.5, tau=2.0)
    same(dist(s, t, beta=1.5, gamma=0.5, temperature=2.0, scale=True), theirs(loss, s, t))


def test_dist_plus_rewards_the_opposite_channel_correlation():
    """Their channel part is +rho; ours is 1 - rho. Their spatial part is over the batch."""
    (fs, ft), (s, t) = two(4, 6, 3, 3), two(4, 7)
    loss = peer.DISTPlusLoss(*("m", "output") * 2, *("f", "output") * 2)
    channel = loss.channel_relation(fs, ft)
    same(1 - dist_channel(fs, ft).mean(), channel, rtol=1e-6)
    flat = [f.sum(1).flatten(1).T[None] for f in (fs, ft)]
    spatial = loss.spatial_relation(fs, ft)
    over_batch = 1 - torch.stack(
        [
            torch.corrcoef(torch.stack([a, b]))[0, 1]
            for a, b in zip(*(f[0] for f in flat), strict=True)
        ]
    )
    assert spatial.ndim == 0 and 0 <= spatial <= 2
    same(spatial, over_batch.mean(), rtol=1e-6)
    assert abs(dist_spatial(fs, ft).mean() - spatial) > 0.01
    total = loss(
        {"m": {"output": s}, "f": {"output": fs}}, {"m": {"output": t}, "f": {"output": ft}}
    )
    same(total, dist(s, t, scale=True) + channel + spatial)


@pytest.mark.parametrize("mode", ["code", "paper"])
def test_attention_transfer(mode):
    s, t = two(3, 4, 5, 5)
    loss = peer.ATLoss(PAIR, mode=mode)
    same(attention_transfer(s, t, convention=mode).mean(), theirs(loss, s, t))


def test_fsp_is_a_sum_of_column_norms():
    """Their distance of two matrices is the sum of the norms of its columns, not squared."""
    (a, b), (c, d) = two(3, 4, 5, 5), two(3, 6, 5, 5)
    d = d + a.mean()
    pair = {k: {"path": k, "io": "output"} for k in ("student_first", "student_second")}
    pair |= {k: {"path": k, "io": "output"} for k in ("teacher_first", "teacher_second")}
    loss = peer.FSPLoss({"one": pair})
    value = loss(
        {"student_first": {"output": a}, "student_second": {"output": c}},
        {"teacher_first": {"output": b}, "teacher_second": {"output": d}},
    )
    flow = [x.flatten(2) @ y.flatten(2).mT / 25 for x, y in ((a, c), (b, d))]
    difference = flow[0] - flow[1]
    same(value, difference.norm(dim=1).sum(1).mean())
    same(fsp(a, b, c, d, convention="paper").mean(), difference.square().sum((1, 2)).mean())


def test_similarity_preserving_has_rows_of_another_norm():
    """They call `normalize(x, 1)`, whose 1 is the order of the norm: rows sum to 1 there."""
    s, t = two(5, 3, 2, 2)
    loss = peer.SPKDLoss("m", "m", reduction="batchmean")
    g = [x.flatten(1) @ x.flatten(1).T for x in (s, t)]
    one, euclid = ([x / x.norm(p=p, dim=1, keepdim=True) for x in g] for p in (1, 2))
    same(theirs(loss, s, t), (one[0] - one[1]).square().sum() / 25)
    same(similarity_preserving(s, t).mean(), (euclid[0] - euclid[1]).square().sum() / 25)


def test_correlation_congruence_is_not_squared():
    s, t = (torch.nn.functional.normalize(x) for x in two(5, 8))
    loss = peer.CCKDLoss(
        "m", "m", kernel_config={"type": "gaussian", "gamma": 0.4, "max_p": 2},
        reduction="batchmean",
    )  # fmt: skip
    ours = correlation_congruence(s, t, kernel="gaussian", gamma=0.4, order=2).sum() * 5
    same(ours.sqrt() / 25, theirs(loss, s, t), rtol=1e-7)


def test_relational_distance_and_angle():
    s, t = two(5, 8)
    distance = peer.RKDLoss("m", "m", dist_factor=1.0, angle_factor=0.0, reduction="mean")
    same(rkd_distance(s, t).mean(), theirs(distance, s, t), rtol=1e-7)
    angle = peer.RKDLoss("m", "m", dist_factor=0.0, angle_factor=1.0, reduction="mean")
    same(rkd_angle(s, t).mean(), theirs(angle, s, t), rtol=1e-7)


def test_pkt_is_that_of_the_code_but_for_where_eps_is():
    s, t = two(5, 8)
    loss = peer.PKTLoss("m", "output", "m", "output")
    same(pkt(s, t, convention="code").mean() / 5, theirs(loss, s.clone(), t.clone()), rtol=1e-4)


def test_vid_has_half_the_logarithm_of_the_variance():
    s, t = two(3, 4, 5, 5)
    log_scale = torch.tensor([0.1, -0.3, 0.2, 0.0], dtype=torch.float64)
    variance = (2 * log_scale).exp()[:, None, None]
    value = theirs(peer.VIDLoss(PAIR), (s, variance), t)
    same(vid(s, t, log_scale=log_scale).mean(), value)


def test_activation_boundary():
    s, t = two(3, 4, 5, 5)
    loss = peer.AltActTransferLoss(PAIR, margin=1.0, reduction="mean")
    same(activation_boundary(s, t).mean(), theirs(loss, s, t))


def test_factor_transfer_is_their_mean_times_the_features():
    s, t = two(3, 4, 5, 5)
    loss = peer.FTLoss(p=1, paraphraser_path="m", translator_path="m")
    same(factor_transfer(s, t).mean() / 100, theirs(loss, s, t))


def test_hierarchical_context():
    s, t = two(3, 4, 7, 7)
    loss = peer.HierarchicalContextLoss(*BOTH)
    same(hcl(s, t).mean(), theirs(loss, (s, None), t))


def test_inter_channel_correlation_is_divided_by_the_batch_once_more():
    s, t = two(3, 4, 5, 5)
    same(ickd(s, t, convention="code").mean() / 3, theirs(peer.ChSimLoss(PAIR), s, t))


def test_prime_aware():
    s, t = two(3, 8)
    log_variance = two(3, 8)[0] / 2
    loss = peer.PADL2Loss("m", "m", module_path="v")
    value = loss({"m": {"output": s}, "v": {"output": log_variance}}, {"m": {"output": t}})
    same(pad(s, t, log_variance=log_variance).mean(), value)


def test_direction_of_skd():
    s, t = two(5, 8)
    same(skd_direction(s, t).mean(), theirs(peer.SKDDirectionLoss(*BOTH), s, t), rtol=1e-7)


def test_log_distance_is_per_sample_here_and_of_the_batch_there():
    s, t = two(1, 8)
    loss = peer.SRDLoss(
        *BOTH, "m", "output", "m", "output", exponent=4.0, temperature=1.0, reduction="batchmean"
    )
    same(2 * log_distance(s, t, exponent=4.0).mean() + kl(s, t).mean(), theirs(loss, s, t))
