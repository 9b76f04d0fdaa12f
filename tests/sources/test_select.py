"""The most probable classes and draws, compared with double precision over the whole vocabulary."""

from __future__ import annotations

import pytest
import torch

from fkd.sources import sampled, top_k
from fkd.sources._select import GROUP, _fall

SIZES = (5, GROUP, 2 * GROUP + 3, 40 * GROUP, 100 * GROUP + 7)
"""Vocabularies without a group, with one, with classes beyond them, and with many."""


def logits(vocab, offset=0.0, positions=6):
    draw = torch.Generator().manual_seed(vocab)
    z = 4 * torch.randn(positions, vocab, generator=draw) + offset
    z[0, : vocab // 3] = -torch.inf  # classes that are impossible
    return z


@pytest.mark.parametrize("vocab", SIZES)
@pytest.mark.parametrize("offset", [0.0, 300.0])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_most_probable_classes_are_those_of_the_whole(vocab, offset, temperature):
    z = logits(vocab, offset)
    k = min(9, vocab - 2)
    found = top_k(k, temperature=temperature)(z)
    log_p = (z.double() / temperature).log_softmax(-1)
    top, ids = log_p.topk(k)
    assert torch.equal(found.index()[1:], ids[1:])
    tolerance = {"rtol": 1e-5, "atol": 3e-6 + 1e-7 * offset}
    torch.testing.assert_close(found.log_probs.double(), top, **tolerance)
    rest = log_p.scatter(-1, ids, -torch.inf).logsumexp(-1)
    torch.testing.assert_close(found.log_rest.double(), rest, **tolerance)


def test_equal_logits_give_each_class_once():
    found = top_k(20)(torch.zeros(3, 64 * GROUP))
    assert all(len(set(row)) == 20 for row in found.index().tolist())
    torch.testing.assert_close(found.log_rest.exp() + found.log_probs.exp().sum(-1), torch.ones(3))


def test_a_rest_that_is_next_to_nothing_is_not_rounded_away():
    z = torch.zeros(1, 100 * GROUP)
    z[0, 17] = 60.0
    expected = z.double().log_softmax(-1)[0, 0] + torch.tensor(100.0 * GROUP - 1).double().log()
    torch.testing.assert_close(top_k(1)(z).log_rest[0].double(), expected, rtol=1e-6, atol=0)


def test_nan_is_not_hidden():
    z = logits(100 * GROUP)
    z[2, 5] = torch.nan
    assert top_k(4)(z).log_probs[2].isnan().any() and sampled(4)(z).entropy[2].isnan()
    assert not top_k(4)(z).log_probs[3].isnan().any()


@pytest.mark.parametrize("vocab", SIZES)
@pytest.mark.parametrize("proposal", [1.0, 0.7])
def test_draws_have_the_frequencies_of_the_teacher(vocab, proposal):
    z, rounds, n = logits(vocab)[:2], 400, 64
    p = torch.softmax(z.double(), -1)
    counts = torch.zeros(2, vocab, dtype=torch.float64)
    torch.manual_seed(0)
    for _ in range(rounds):
        made = sampled(n, proposal=proposal)(z)
        ones = torch.full(made.ids.shape, 1 / n) if made.weights is None else made.weights
        counts.scatter_add_(-1, made.index(), ones.double())
        assert bool((p.gather(-1, made.index()) > 0).all())
    # Independent draws scatter so much; of rare classes a few draws are many.
    r = p**proposal / (p**proposal).sum(-1, keepdim=True)
    each = torch.where(p > 0, p / r.clamp_min(1e-300), 0.0) / (n * rounds)
    error = (p * each).sqrt()
    assert bool(((counts / rounds - p).abs() <= 6 * error + 4 * each).all())
    log_p = p.clamp_min(1e-300).log()
    torch.testing.assert_close(made.entropy.double(), -(p * log_p).sum(-1), rtol=1e-4, atol=1e-5)
    assert torch.equal(made.first()[1], z[1].argmax())


def test_a_point_falls_into_the_class_whose_part_it_is_in():
    vocab = 3 * GROUP + 2
    p = torch.softmax(logits(vocab)[1:], -1)
    order = torch.cat([torch.arange(3 * GROUP).reshape(GROUP, 3).t().flatten(),
                       torch.arange(3 * GROUP, vocab)])  # fmt: skip
    points = torch.linspace(0, 0.999, 50).expand(5, -1)
    ends = p[:, order].double().cumsum(-1)
    expected = order[torch.searchsorted(ends, points.double() * ends[:, -1:], right=True)]
    assert float((_fall(p, points) == expected).double().mean()) > 0.99  # rounding at the ends


def test_gradients_are_those_of_a_softmax():
    z = logits(40 * GROUP)[1:].double().requires_grad_()
    found = top_k(5)(z)
    log_p = z.log_softmax(-1)
    rest = log_p.scatter(-1, found.index(), -torch.inf).logsumexp(-1)
    for one, other in (
        (found.log_probs, log_p.gather(-1, found.index())),
        (found.log_rest, rest),
        (sampled(5)(z).entropy, -(log_p.exp() * log_p).sum(-1)),
    ):
        factors = torch.linspace(-1, 1, one.numel(), dtype=z.dtype).reshape(one.shape)
        a, b = (torch.autograd.grad((x * factors).sum(), z, retain_graph=True)[0]
                for x in (one, other))  # fmt: skip
        torch.testing.assert_close(a, b)


@pytest.mark.compile
def test_compiled_is_eager():
    z = logits(40 * GROUP + 3).reshape(2, 3, -1)
    uniform = torch.rand(2, 3, 8)
    known, few = (torch.compile(fn)(*x) for fn, x in ((top_k(5), (z,)), (sampled(8), (z, uniform))))
    assert torch.equal(known.index()[1], top_k(5)(z).index()[1])
    torch.testing.assert_close(known.log_rest, top_k(5)(z).log_rest)
    same = few.index() == sampled(8)(z, uniform).index()
    assert float(same.double().mean()) > 0.9
    torch.testing.assert_close(few.entropy, sampled(8)(z, uniform).entropy, rtol=1e-4, atol=1e-5)
