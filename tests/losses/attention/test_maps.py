"""Laws of the losses between attention maps: masks over pairs of tokens, heads, neighbours."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from scipy.special import entr, rel_entr

from fkd.losses import (
    attention_cross_entropy,
    attention_kl,
    attention_mse,
    attention_scores_kl,
    match_heads,
)

from ..case import normal
from ..laws import close

LOSSES = [
    (attention_mse, False),
    (attention_kl, True),
    (attention_scores_kl, False),
    (attention_cross_entropy, True),
]
every_loss = pytest.mark.parametrize(
    "loss, normalized", LOSSES, ids=lambda x: getattr(x, "__name__", "")
)
POISON = [float("nan"), float("inf"), float("-inf"), torch.finfo(torch.float64).min]


def maps(normalized, *shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    pair = [normal(*shape)(g) for _ in range(2)]
    return [x.softmax(-1) if normalized else x for x in pair]


def padded(x, length, fill):
    """`x` with further tokens of any content, as queries and as keys."""
    out = x.new_full((*x.shape[:-2], length, length), fill)
    out[..., : x.shape[-2], : x.shape[-1]] = x
    return out


@every_loss
@pytest.mark.parametrize("poison", POISON, ids=str)
@pytest.mark.parametrize("length", [5, 9])
def test_padded_equals_unpadded(loss, normalized, poison, length):
    short = [x.requires_grad_() for x in maps(normalized, 2, 3, 4, 4)]
    want = loss(*short)
    want_grads = torch.autograd.grad(want.sum(), short)
    long = [padded(x.detach(), length, poison).requires_grad_() for x in short]
    where = (torch.arange(length) < 4).expand(2, length)
    out = loss(*long, where=where)
    grads = torch.autograd.grad(out.sum(), long)
    close(out[:, :4], want)
    assert (out[:, 4:] == 0).all()
    for grad, want_grad in zip(grads, want_grads, strict=True):
        close(grad[..., :4, :4], want_grad)
        assert (grad[..., 4:, :] == 0).all() and (grad[..., :, 4:] == 0).all()


@every_loss
def test_ragged_batch_equals_single_sequences(loss, normalized):
    s, t = maps(normalized, 3, 2, 6, 6)
    lengths = [6, 1, 4]
    where = torch.stack([torch.arange(6) < n for n in lengths])
    out = loss(s, t, where=where)
    for b, n in enumerate(lengths):
        close(out[b, :n], loss(s[b, :, :n, :n], t[b, :, :n, :n]))


@every_loss
def test_cross_attention_masks_keys_alone(loss, normalized):
    s, t = maps(normalized, 2, 3, 4, 6)
    keys = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 1, 0, 0, 0, 1]], dtype=torch.bool)
    out = loss(s, t, key_where=keys)
    for b in range(2):
        close(out[b], loss(s[b][..., keys[b]], t[b][..., keys[b]]))


@every_loss
def test_all_masked(loss, normalized):
    pair = [torch.full_like(x, torch.nan).requires_grad_() for x in maps(normalized, 2, 3, 4, 4)]
    out = loss(*pair, where=torch.zeros(2, 4, dtype=torch.bool))
    assert (out == 0).all()
    assert all((g == 0).all() for g in torch.autograd.grad(out.sum(), pair))


@every_loss
def test_heads_of_both_may_be_permuted(loss, normalized):
    s, t = maps(normalized, 2, 4, 5, 5)
    order = torch.tensor([2, 0, 3, 1])
    close(loss(s[:, order], t[:, order]), loss(s, t))


@every_loss
def test_vmap(loss, normalized):
    s, t = maps(normalized, 3, 2, 5, 5)
    where = torch.rand(3, 5, generator=torch.Generator().manual_seed(1)) < 0.7
    out = torch.vmap(lambda a, b, m: loss(a, b, where=m))(s, t, where)
    close(out, loss(s, t, where=where))


@every_loss
def test_batches_of_any_rank(loss, normalized):
    s, t = maps(normalized, 2, 3, 2, 5, 5)
    assert loss(s, t).shape == (2, 3, 5)
    close(loss(s, t)[1], loss(s[1], t[1]))


def test_mse_without_mask_is_torch_mse():
    s, t = maps(False, 2, 3, 4, 4)
    close(attention_mse(s, t).mean(), F.mse_loss(s, t))
    close(attention_mse(s, t, normalize="pair").value, F.mse_loss(s, t))


def test_mse_of_equal_lengths_agrees_in_both_conventions():
    s, t = maps(False, 2, 3, 6, 6)
    where = (torch.arange(6) < 4).expand(2, 6)
    by_query = attention_mse(s, t, where=where).sum() / where.sum()
    close(attention_mse(s, t, where=where, normalize="pair").value, by_query)


def test_mse_of_pairs_weighs_long_sequences_more():
    s = torch.zeros(2, 1, 4, 4)
    t = torch.tensor([1.0, 2.0])[:, None, None, None].expand_as(s)
    where = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]])
    mean = attention_mse(s, t, where=where, normalize="pair")
    assert (mean.total, mean.count) == (16 * 1 + 1 * 4, 17)
    assert attention_mse(s, t, where=where).sum() / 5 == (4 * 1 + 1 * 4) / 5


def test_means_of_pairs_merge():
    s, t = maps(False, 4, 2, 5, 5)
    where = torch.rand(4, 5, generator=torch.Generator().manual_seed(1)) < 0.7
    whole = attention_mse(s, t, where=where, normalize="pair")
    a, b = (
        attention_mse(s[i], t[i], where=where[i], normalize="pair")
        for i in (slice(0, 1), slice(1, 4))
    )
    close(a.merge(b).value, whole.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("infinite", [True, False])
@pytest.mark.parametrize("loss", [attention_mse, attention_scores_kl])
def test_causal_masks_of_the_models_count_as_equal(loss, dtype, infinite):
    s, t = (x.to(dtype) for x in maps(False, 2, 3, 4, 4))
    future = torch.ones(4, 4).triu(1).bool()
    low = -torch.inf if infinite else torch.finfo(dtype).min
    pair = [x.masked_fill(future, low).requires_grad_() for x in (s, t)]
    out = loss(*pair)
    grads = torch.autograd.grad(out.sum(), pair)
    assert out.isfinite().all() and all(g.isfinite().all() for g in grads)
    assert all((g[..., future] == 0).all() for g in grads)
    row = [x[..., 2:3, :3] for x in (s, t)]
    want = loss(*row)[:, 0]
    if loss is attention_mse:  # the pair that is masked by both is one of the four
        want = want * 3 / 4
    close(out[:, 2], want, rtol=1e-5)


def test_causal_padded_on_the_left():
    """Rows without any key: the first tokens are padding, and see nothing at all."""
    s, t = maps(False, 1, 2, 5, 5)
    where = torch.tensor([[0, 0, 1, 1, 1]])
    hidden = torch.ones(5, 5).triu(1).bool() | (where == 0)
    pair = [x.masked_fill(hidden, -torch.inf).requires_grad_() for x in (s, t)]
    for loss in (attention_mse, attention_scores_kl):
        out = loss(*pair, where=where)
        want = loss(*(x[..., 2:, 2:] for x in pair))
        close(out[:, 2:], want)
        assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), pair))
    probabilities = [x.softmax(-1) for x in pair]  # the rows of padding are nan
    out = attention_kl(*probabilities, where=where)
    close(out, attention_scores_kl(*pair, where=where))


def test_kl_of_scores_is_kl_of_their_softmax():
    s, t = maps(False, 2, 3, 4, 4)
    where = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0]])
    close(attention_kl(s.softmax(-1), t.softmax(-1)), attention_scores_kl(s, t))
    masked = attention_kl(s.softmax(-1), t.softmax(-1), where=where)
    close(masked, attention_scores_kl(s, t, where=where))


def test_cross_entropy_is_kl_plus_entropy():
    q, p = maps(True, 2, 3, 4, 4)
    entropy = torch.from_numpy(entr(p.numpy()).sum(-1).mean(1))
    close(attention_cross_entropy(q, p), attention_kl(q, p) + entropy)


def test_kl_against_scipy():
    q, p = maps(True, 2, 3, 4, 4)
    want = rel_entr(p.numpy(), q.numpy()).sum(-1).mean(1)
    close(attention_kl(q, p), torch.from_numpy(want))


def test_kl_ignores_the_scale_of_probabilities():
    """Dropout and masked keys leave rows that do not sum to 1."""
    q, p = maps(True, 2, 3, 4, 4)
    close(attention_kl(0.3 * q, 2 * p), attention_kl(q, p))


@pytest.mark.parametrize("loss", [attention_kl, attention_cross_entropy])
def test_probability_zero(loss):
    p = torch.tensor([[[[0.5, 0.5, 0.0]]]], requires_grad=True)
    q = torch.tensor([[[[0.5, 0.5, 0.0]]]], requires_grad=True)
    both = loss(q, p)
    close(both, torch.tensor([[0.0 if loss is attention_kl else 0.6931472]]), atol=1e-6)
    gone = torch.tensor([[[[1.0, 0.0, 0.0]]]], requires_grad=True)
    large = loss(gone, p)
    assert 40 < large < 60  # 0.5 * -log(the smallest normal number) = 43.7
    for out in (both, large, loss(p, gone)):
        leaves = [x for x in (p, q, gone)]
        grads = torch.autograd.grad(out.sum(), leaves, allow_unused=True)
        assert all(g is None or g.isfinite().all() for g in grads)


def test_match_heads():
    x = maps(True, 2, 6, 3, 3)[0]
    close(match_heads(x, 6), x)
    close(match_heads(x, 1)[:, 0], x.mean(1))
    close(match_heads(x, 2)[:, 1], x[:, 3:].mean(1))
    close(match_heads(x, 3, how="pick"), x[:, ::2])
    close(match_heads(x, 2).sum(-1), torch.ones(2, 2, 3))


def test_text_brewer_sums_heads():
    """Its attention_mse_sum compares sums of heads: heads^2 times that of the means."""
    s, t = maps(False, 2, 4, 3, 3)
    want = F.mse_loss(s.sum(1), t.sum(1))
    close(16 * attention_mse(match_heads(s, 1), match_heads(t, 1)).mean(), want)


@pytest.mark.plain
@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: attention_mse(x, x[:, :2]), "4 heads and teacher_x has 2.*match_heads"),
        (lambda x: attention_mse(x, x[..., :2]), "attention_mse: .* same shape"),
        (lambda x: attention_kl(x.long(), x.long()), "attention_kl: .* dtype"),
        (lambda x: attention_kl(x, x, where=torch.ones(2, 4)), r"where .* \(2, 4\); \(2, 3\)"),
        (lambda x: attention_kl(x, x, key_where=torch.ones(2, 4)), r"key_where .* \(2, 4\)"),
        (lambda x: attention_kl(x, x, key_where=torch.ones(2, 3)), "key_where has dtype .*float32"),
        (
            lambda x: attention_mse(x[..., :2], x[..., :2], where=torch.ones(2, 3).bool()),
            "key_where",
        ),
        (lambda x: attention_mse(x[0, 0], x[0, 0]), "unsqueeze"),
        (lambda x: attention_mse(x, x, normalize="batch"), "normalize 'batch'"),
        (lambda x: match_heads(x, 3), "heads 3; a divisor of the 4 heads"),
        (lambda x: match_heads(x, 2, how="sum"), "how 'sum'"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.rand(2, 4, 3, 3))


@every_loss
def test_no_key_counts(loss, normalized):
    pair = [x.requires_grad_() for x in maps(normalized, 2, 3, 4, 5)]
    out = loss(*pair, key_where=torch.zeros(2, 5, dtype=torch.bool))
    assert (out == 0).all()
    assert all((g == 0).all() for g in torch.autograd.grad(out.sum(), pair))


def test_all_pairs_with_a_mask_of_the_keys_is_tinybert_with_padding():
    """Its code adds -1e4 to padded keys, zeroes scores of -1e2 and less, and takes the mean."""
    s, t = maps(False, 3, 2, 5, 5)
    keys = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]).bool()
    added = -1e4 * (~keys)[:, None, None].double()
    s_masked, t_masked = (torch.where(x + added <= -1e2, 0.0, x + added) for x in (s, t))
    out = attention_mse(s, t, normalize="all", key_where=keys)
    close(out.value, torch.nn.functional.mse_loss(s_masked, t_masked))
    close(attention_mse(s, t, normalize="all").value, attention_mse(s, t, normalize="pair").value)


def test_all_pairs_share_the_total_of_the_pairs_that_count():
    s, t = maps(False, 3, 2, 5, 5)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]])
    every, pairs = (attention_mse(s, t, normalize=n, where=mask) for n in ("all", "pair"))
    close(every.total, pairs.total)
    assert every.count == 3 * 2 * 25 and pairs.count == 2 * (25 + 9)


@pytest.mark.plain
def test_an_unknown_normalisation_is_refused():
    s, t = maps(False, 3, 2, 5, 5)
    with pytest.raises(ValueError, match="attention_mse: normalize 'mean'; 'query'"):
        attention_mse(s, t, normalize="mean")
    with pytest.raises(ValueError, match="attention_mse: normalize 'mean'; 'query'"):
        attention_mse(s[:, :, :0], t[:, :, :0], normalize="mean")
