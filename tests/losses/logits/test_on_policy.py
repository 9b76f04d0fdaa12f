"""What the estimators of the reverse KL are unbiased for, and the neighbours of `ofa`."""

from __future__ import annotations

import pytest
import torch

from fkd.losses import cross_entropy, kl, ofa, reverse_kl, sampled_reverse_kl, soft_cross_entropy

VOCAB = 6


def logits():
    g = torch.Generator().manual_seed(0)
    s, t = (torch.randn(VOCAB, generator=g, dtype=torch.float64) for _ in range(2))
    return s.requires_grad_(), t


def expected(s, t, estimator):
    """The mean over all draws, whose probabilities are held constant."""
    each = sampled_reverse_kl(
        s.expand(VOCAB, -1), t.expand(VOCAB, -1), torch.arange(VOCAB), estimator=estimator
    )
    return (s.detach().softmax(-1) * each).sum()


def gradient(value, s):
    return torch.autograd.grad(value, s)[0]


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_values_are_unbiased(estimator):
    s, t = logits()
    torch.testing.assert_close(expected(s, t, estimator), reverse_kl(s[None], t[None])[0])


def test_gradient_of_k2_is_that_of_the_reverse_kl():
    s, t = logits()
    ours = gradient(expected(s, t, "k2"), s)
    torch.testing.assert_close(ours, gradient(reverse_kl(s[None], t[None]).sum(), s))


def test_gradient_of_k3_is_that_of_the_forward_kl():
    s, t = logits()
    ours = gradient(expected(s, t, "k3"), s)
    torch.testing.assert_close(ours, gradient(kl(s[None], t[None]).sum(), s))


def test_gradient_of_k1_has_mean_zero():
    s, t = logits()
    ours = gradient(expected(s, t, "k1"), s)
    torch.testing.assert_close(ours, torch.zeros(VOCAB).double(), atol=1e-12, rtol=0)


def test_ofa_without_enhancement_is_a_sum_of_neighbours():
    s, t = (x.detach()[None] for x in logits())
    label = torch.tensor([2])
    soft = soft_cross_entropy(s, t)
    torch.testing.assert_close(ofa(s, t, label, gamma=1.0), soft + cross_entropy(s, label))
    torch.testing.assert_close(ofa(s, t, label, gamma=1.0, convention="code"), soft)


def test_messages():
    s, t = (x.detach()[None] for x in logits())
    with pytest.raises(ValueError, match="estimator"):
        sampled_reverse_kl(s, t, torch.tensor([0]), estimator="k4")
    with pytest.raises(ValueError, match="convention"):
        ofa(s, t, torch.tensor([0]), convention="other")
