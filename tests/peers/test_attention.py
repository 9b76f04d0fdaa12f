"""Attention losses beside those of TextBrewer 0.2.1, and where they differ."""

from __future__ import annotations

import pytest
import torch

from fkd.losses import attention_cross_entropy, attention_mse, match_heads

losses = pytest.importorskip("textbrewer.losses")

MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
ALL = torch.ones_like(MASK)


def scores():
    g = torch.Generator().manual_seed(0)
    return [torch.randn(3, 4, 5, 5, generator=g, dtype=torch.float64) for _ in range(2)]


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_masked_mse_is_the_mean_over_pairs():
    s, t = scores()
    ours = attention_mse(s, t, where=MASK, normalize="pair").value
    same(ours, losses.att_mse_loss(s, t, MASK))


def test_unmasked_mse_differs_for_negative_scores():
    """Without a mask, it sets scores below -0.001 to 0, that is, about half of them."""
    s, t = scores()
    assert losses.att_mse_loss(s, t) < 0.8 * attention_mse(s, t).mean()
    same(attention_mse(s.clamp(min=0), t.clamp(min=0)).mean(), losses.att_mse_loss(s, t))


def test_mse_of_the_sum_of_heads():
    s, t = scores()
    one = [4 * match_heads(x, 1) for x in (s, t)]
    ours = attention_mse(*one, where=MASK, normalize="pair").value
    same(ours, losses.att_mse_sum_loss(s, t, MASK))


def test_cross_entropy_of_full_sequences():
    s, t = scores()
    ours = attention_cross_entropy(s.softmax(-1), t.softmax(-1)).mean()
    same(ours, losses.att_ce_loss(s, t, ALL))
    one = [match_heads(x, 1).softmax(-1) for x in (s, t)]
    same(attention_cross_entropy(*one).mean(), losses.att_ce_mean_loss(s, t, ALL))


def test_cross_entropy_of_padded_sequences_differs():
    """There, padding keeps its part of the softmax, so the content of padding has an effect."""
    s, t = scores()
    hidden = MASK[:, None, None, :] == 0
    other = [x.masked_fill(hidden, 3.0) for x in (s, t)]
    theirs = [losses.att_ce_loss(*pair, MASK) for pair in ((s, t), other)]
    ours = [
        attention_cross_entropy(*(x.softmax(-1) for x in pair), where=MASK)
        for pair in ((s, t), other)
    ]
    assert abs(theirs[0] - theirs[1]) > 0.1
    same(ours[0], ours[1])
