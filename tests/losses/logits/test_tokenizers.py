"""Neighbours and laws of the losses between two tokenizers."""

from __future__ import annotations

import torch

from fkd.losses import alm, kl, shared_kl, span_log_probs, token_log_probs

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
