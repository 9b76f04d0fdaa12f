"""What the estimators of the reverse KL are unbiased for, and the neighbours of `ofa`."""

from __future__ import annotations

import pytest
import torch

from fkd.losses import (
    cross_entropy,
    kl,
    ofa,
    policy_reverse_kl,
    reverse_kl,
    sampled_reverse_kl,
    soft_cross_entropy,
)

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


def texts(length: int = 3, vocab: int = 3):
    """Every text over a small vocabulary, and two models of it: logits given what came before."""
    g = torch.Generator().manual_seed(0)
    size = sum(vocab**n for n in range(length))
    s, t = (torch.randn(size, vocab, generator=g, dtype=torch.float64) for _ in range(2))
    every = torch.cartesian_prod(*[torch.arange(vocab)] * length)
    begin = torch.tensor([sum(vocab**n for n in range(k)) for k in range(length)])
    powers = vocab ** torch.arange(length)
    nodes = [
        begin[k] + sum(every[:, j] * powers[k - 1 - j] for j in range(k)) for k in range(length)
    ]
    places = torch.stack([n * torch.ones(len(every)) for n in nodes], 1).long()
    return s.requires_grad_(), t, every, places


def log_probs(logits, every, nodes):
    return logits.log_softmax(-1)[nodes].gather(-1, every[..., None]).squeeze(-1)


def sequence_kl(s, t, every, nodes):
    log_q, log_p = log_probs(s, every, nodes).sum(-1), log_probs(t, every, nodes).sum(-1)
    return (log_q.exp() * (log_q - log_p)).sum()


def token_kl(s, t, every, nodes):
    """The KL of each position, given contexts of the student that are held constant."""
    q = log_probs(s, every, nodes).sum(-1).exp().detach()
    each = reverse_kl(s, t)[nodes]
    return (q[:, None] * each).sum()


@pytest.mark.parametrize(("discount", "wanted"), [(1.0, sequence_kl), (0.0, token_kl)])
def test_policy_gradients_are_those_of_the_text_or_of_its_tokens(discount, wanted):
    s, t, every, nodes = texts()
    log_q, log_p = log_probs(s, every, nodes), log_probs(t, every, nodes)
    q = log_q.sum(-1).exp().detach()
    loss = (q[:, None] * policy_reverse_kl(log_q, log_p, discount=discount)).sum()
    exact = wanted(s, t, every, nodes)
    torch.testing.assert_close(gradient(loss, s), gradient(exact, s))
    if discount == 0:
        torch.testing.assert_close(loss, exact)


def test_exact_steps_and_later_rewards_are_the_text():
    """MiniLLM's split: the position itself exactly, what it does to later ones by reward."""
    s, t, every, nodes = texts()
    log_q, log_p = log_probs(s, every, nodes), log_probs(t, every, nodes)
    q = log_q.sum(-1).exp().detach()
    later = policy_reverse_kl(log_q, log_p, discount=1.0, skip=1)
    loss = (q[:, None] * (reverse_kl(s, t)[nodes] + later)).sum()
    exact = gradient(sequence_kl(s, t, every, nodes), s)
    torch.testing.assert_close(gradient(loss, s), exact)


def test_texts_of_an_older_student_are_weighed():
    s, t, every, nodes = texts()
    old = log_probs(s.detach() + 0.3 * torch.arange(3), every, nodes)
    log_q, log_p = log_probs(s, every, nodes), log_probs(t, every, nodes)
    first = old[:, 0].exp()  # only the first token: its context is the same for both
    share = first / 9
    loss = (share * policy_reverse_kl(log_q[:, :1], log_p[:, :1], behaviour=old[:, :1])[:, 0]).sum()
    exact = reverse_kl(s[:1], t[:1]).sum()
    torch.testing.assert_close(gradient(loss, s), gradient(exact, s))
    clipped = policy_reverse_kl(log_q, log_p, behaviour=log_q.detach() - 1, clip=0.2)
    gain = (log_p - log_q).detach()
    assert torch.allclose(clipped[gain > 0], (-1.2 * gain)[gain > 0])
    assert torch.allclose(clipped[gain < 0], (-torch.e * gain)[gain < 0])


def test_what_does_not_count_gives_nothing_to_earlier_tokens():
    g = torch.Generator().manual_seed(0)
    log_q, log_p = (-torch.rand(2, 5, generator=g, dtype=torch.float64) for _ in range(2))
    where = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    for options in ({"discount": 0.5}, {"discount": 1.0}, {"discount": 0.9, "skip": 1}):
        whole = policy_reverse_kl(
            log_q.masked_fill(~where, torch.nan), log_p, where=where, **options
        )
        cut = policy_reverse_kl(log_q[:1, :3], log_p[:1, :3], **options)
        torch.testing.assert_close(whole[:1, :3], cut)
        assert (whole[0, 3:] == 0).all()
    with pytest.raises(ValueError, match="discount=2"):
        policy_reverse_kl(log_q, log_p, discount=2.0)
