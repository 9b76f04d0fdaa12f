"""Invariances and neighbours of the ranking losses and of those between vocabularies."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from fkd.losses import (
    adaptive_layer_kl,
    hinge_ranking,
    in_batch_kl,
    kl,
    listwise_kl,
    logistic_ranking,
    margin_mse,
    multi_level_ot,
    sinkhorn_ot,
    uld,
)

from ..laws import close


def two(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    s, t = (torch.randn(*shape, generator=g, dtype=torch.float64) for _ in range(2))
    return s, t


@pytest.mark.parametrize("loss", [margin_mse, hinge_ranking, logistic_ranking, listwise_kl])
def test_a_constant_added_to_all_scores_changes_nothing(loss) -> None:
    s, t = two(5, 7)
    close(loss(s + 3, t - 2), loss(s, t))


@pytest.mark.parametrize("loss", [hinge_ranking, logistic_ranking])
def test_only_the_order_of_the_teacher_enters(loss) -> None:
    s, t = two(5, 7)
    close(loss(s, t.exp()), loss(s, t))
    assert (loss(s, torch.zeros_like(t)) == 0).all()
    assert (loss(10 * t, t) < loss(-10 * t, t)).all()


def test_a_separated_ranking_has_no_hinge() -> None:
    scores = torch.arange(5.0)[None]
    assert hinge_ranking(scores, scores, margin=1.0).item() == 0


def test_places_without_a_candidate_may_hold_anything() -> None:
    s, t = two(3, 5)
    used = torch.arange(5) < torch.tensor([[5], [2], [0]])
    bad = s.masked_fill(~used, torch.nan).requires_grad_()
    out = listwise_kl(bad, t.masked_fill(~used, torch.inf), candidates=used)
    close(out[:2], torch.stack([kl(s[0], t[0]), kl(s[1, :2], t[1, :2])]))
    assert out[2] == 0
    grad = torch.autograd.grad(out.sum(), bad)[0]
    assert (grad[~used] == 0).all()
    assert grad.isfinite().all()


def test_in_batch_kl() -> None:
    q, d = two(5, 4)
    close(in_batch_kl(q, q, d, d), torch.zeros(5).double())
    rotation = torch.linalg.qr(two(4, 4)[0])[0]
    close(in_batch_kl(q @ rotation, q, 2 * d @ rotation, d), torch.zeros(5).double(), atol=1e-10)
    zero = torch.zeros(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(in_batch_kl(zero, q, d, d).sum(), zero)[0].isfinite().all()


def test_adaptive_layer_kl_is_kl_over_the_temperature() -> None:
    s, t = two(5, 7)
    close(adaptive_layer_kl(s, t, temperature=0.3), kl(s, t, temperature=0.3) / 0.3)


def test_uld_is_blind_to_the_order_and_to_padding() -> None:
    s, t = two(5, 7)
    close(uld(s.flip(-1), t), uld(s, t))
    close(uld(s, s.flip(-1)), torch.zeros(5).double())
    padded = torch.cat([s, torch.full((5, 3), -torch.inf)], -1)
    close(uld(padded, t), uld(s, t))
    close(uld(s, t), uld(t, s))


def test_token_level_ot_of_one_token_is_uld() -> None:
    s, t = two(2, 1, 7)
    close(multi_level_ot(s, t, logarithmic=0.0), uld(s, t))


def test_sinkhorn_tends_to_the_best_assignment() -> None:
    s, t = two(1, 4, 3)
    q, p = s.softmax(-1)[0], t.softmax(-1)[0]
    q, p = (x[:, x.sum(0).argsort(descending=True)] for x in (q, p))
    cost = torch.cdist(p, q, p=1)
    rows, columns = linear_sum_assignment(cost.numpy())
    value = sinkhorn_ot(s, t, entropy=0.003, iterations=500)
    close(value, cost[rows, columns].mean()[None], rtol=1e-2)


def test_sinkhorn_ignores_the_order_of_the_tokens() -> None:
    s, t = two(2, 4, 5)
    close(sinkhorn_ot(s.flip(1), t, iterations=200), sinkhorn_ot(s, t, iterations=200))


@pytest.mark.plain
def test_messages() -> None:
    with pytest.raises(ValueError, match=r"margin_mse: student_scores .* fewer than 2 candidates"):
        margin_mse(torch.zeros(2, 1), torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"uld: student_logits .* Align the tokens"):
        uld(torch.zeros(2, 3), torch.zeros(1, 3))
