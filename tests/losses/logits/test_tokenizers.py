"""Neighbours and laws of the losses between two tokenizers."""

from __future__ import annotations

import pytest
import torch

from fkd.losses import (
    alm,
    gold,
    jsd,
    kl,
    merged_log_probs,
    shared_kl,
    span_log_probs,
    token_log_probs,
    uld,
)

from ..laws import close


def two(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    s, t = (torch.randn(*shape, generator=g, dtype=torch.float64) for _ in range(2))
    return s, t


def test_one_vocabulary_is_kl():
    s, t = two(5, 9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    close(shared_kl(s[:, order], t, torch.arange(9), order), kl(s[:, order], t[:, order]))
    ids = torch.arange(8)
    close(shared_kl(s, t, ids, ids), kl(s, t))  # the rest is one class


def test_fewer_shared_entries_are_a_lower_bound():
    s, t = two(5, 9)
    bounds = [shared_kl(s, t, torch.arange(n), torch.arange(n)) for n in range(1, 10)]
    assert (torch.stack(bounds).diff(dim=0) >= -1e-12).all()


def test_equal_models_of_other_vocabularies_are_0():
    s, _ = two(5, 9)
    t = torch.cat([s[:, :4], s[:, 4:].logsumexp(-1, keepdim=True)], -1)
    ids = torch.arange(4)
    close(shared_kl(s, t, ids, ids), torch.zeros(5, dtype=torch.float64), atol=1e-12)


def test_spans_add_up_to_the_text():
    s, _ = two(2, 6, 9)
    ids = torch.randint(9, (2, 6), generator=torch.Generator().manual_seed(0))
    ids[1, 4:] = -100
    log_p = token_log_probs(s, ids)
    assert (log_p[1, 4:] == 0).all()
    close(log_p[0], s[0].log_softmax(-1)[torch.arange(6), ids[0]])
    spans = torch.tensor([[0, 0, 1, 2, 2, 2], [0, 1, 1, 1, -1, -1]])
    kept = torch.tensor([[True, True, True], [True, True, False]])
    found = span_log_probs(log_p, spans, kept)
    close(found.sum(-1), log_p.sum(-1))
    assert found[1, 2] == 0


def test_certain_spans_are_finite():
    certain = torch.zeros(3, requires_grad=True)
    other = torch.tensor([0.0, -1.0, -50.0])
    for values in (alm(certain, other), alm(other, certain)):
        assert torch.isfinite(values).all()
    (gradient,) = torch.autograd.grad(alm(certain - 1e-3, other).sum(), certain)
    assert torch.isfinite(gradient).all()


def test_a_merged_span_is_its_first_distribution_times_what_follows():
    """By hand: "Hug" + "ging" + " Face" for the one, "Hugging" + " Face" for the other."""
    p = torch.tensor([[[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.4, 0.4, 0.2]]])
    ids = torch.tensor([[0, 1, 2, -100]])
    spans, kept = torch.tensor([[0, 0, 1, -1]]), torch.tensor([[True, True, False]])
    found = merged_log_probs(p.log().requires_grad_(), ids, spans, kept)
    by_hand = torch.tensor([[0.7 * 0.3, 0.2 * 0.3, 0.1 * 0.3], [0.1, 0.6, 0.3]])
    torch.testing.assert_close(found[0, :2].exp(), by_hand)
    assert (found[0, 2] == 0).all()
    log_p = token_log_probs(p.log(), ids)
    texts = span_log_probs(log_p, spans, kept)  # the text of a span, at the tokens that stand there
    torch.testing.assert_close(found[0, [0, 1], [0, 2]], texts[0, :2])
    q = torch.tensor([[0.15, 0.3, 0.55], [0.25, 0.25, 0.5]])
    ours, theirs = torch.tensor([0, 2]), torch.tensor([0, 1])  # "Hug", "x"; the rest by rank
    m = (by_hand[:, theirs] + q[:, ours]) / 2
    entries = by_hand[:, theirs] * (by_hand[:, theirs] / m).log() / 2
    entries = entries + q[:, ours] * (q[:, ours] / m).log() / 2
    expected = 2 / 3 * entries.sum(-1) + 1 / 3 * (by_hand[:, 2] - q[:, 1]).abs()
    torch.testing.assert_close(gold(q.log(), found[0, :2].detach(), ours, theirs), expected)


def test_merging_leaves_nan_of_padding_alone():
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    logits[:, 2:] = torch.nan
    logits.requires_grad_()
    ids = torch.tensor([[1, 2, -100, -100]] * 2)
    spans = torch.tensor([[0, 0, -1, -1], [0, 1, -1, -1]])
    kept = torch.tensor([[True, False], [True, True]])
    (gradient,) = torch.autograd.grad(merged_log_probs(logits, ids, spans, kept).sum(), logits)
    assert torch.isfinite(gradient).all() and (gradient[:, 2:] == 0).all()


@pytest.mark.plain
def test_merging_says_what_does_not_fit():
    ids = torch.zeros(2, 4, dtype=torch.long)
    kept = torch.ones(2, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match="merged_log_probs"):
        merged_log_probs(torch.zeros(4, 5), ids, ids, kept)
    with pytest.raises(ValueError, match="merged_log_probs"):
        merged_log_probs(torch.zeros(2, 4, 5), ids[:, :3], ids, kept)
    with pytest.raises(ValueError, match=r"gold: student_log_probs.*must have the same spans"):
        gold(torch.zeros(2, 5), torch.zeros(3, 6), ids[0, :1], ids[0, :1])
    with pytest.raises(ValueError, match="beta"):
        gold(torch.zeros(2, 5), torch.zeros(2, 6), ids[0, :1], ids[0, :1], beta=1.5)


def test_gold_of_one_vocabulary_is_jsd_and_of_none_shared_uld():
    s, t = two(5, 9)
    log_q, log_p = s.log_softmax(-1), t.log_softmax(-1)
    ids, none = torch.arange(9), torch.arange(0)
    close(gold(log_q, log_p, ids, ids, beta=0.3), jsd(s, t, beta=0.3))
    close(gold(log_q, log_p, none, none), uld(s, t))
    assert float(gold(log_q, log_q, ids, ids).abs().max()) < 1e-12
