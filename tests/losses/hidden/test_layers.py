"""Laws of the losses between layers, tokens, spans and samples."""

from __future__ import annotations

import pytest
import torch

from fkd.losses import (
    alp,
    layer_angle,
    layer_relation,
    mgskd_angle,
    mgskd_pair,
    mgskd_sample,
    mix_layers,
    pool_spans,
    rail,
    universal_kd,
    word_angle,
    word_relation,
)
from fkd.losses._samples.rkd import rkd_angle

from ..case import normal
from ..laws import close


def vectors(*shapes, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [normal(*shape)(g) for shape in shapes]


def test_mix_of_one_allowed_layer_is_that_layer():
    s, t = vectors((3, 2, 5), (3, 4, 5))
    allowed = torch.tensor([[0, 0, 1, 0], [1, 0, 0, 0]], dtype=torch.bool)
    close(mix_layers(s, t, allowed=allowed), t[:, [2, 0]])


def test_mix_of_a_zero_query_is_the_mean():
    (t,) = vectors((3, 4, 5))
    close(mix_layers(torch.zeros(3, 1, 5, dtype=t.dtype), t), t.mean(1, keepdim=True))


def test_alp_of_one_teacher_layer_is_mse():
    s, t = vectors((3, 2, 5), (3, 1, 5))
    close(alp(s, t), (s - t).square().mean((1, 2)))


def test_rail_ignores_scale():
    s, t = vectors((3, 2, 5), (3, 4, 5))
    layers = torch.tensor([0, 3])
    close(rail(2 * s, 3 * t, layers=layers), rail(s, t, layers=layers))


def test_rail_of_zero_vectors_is_finite():
    s, t = torch.zeros(1, 2, 3, requires_grad=True), torch.eye(3)[None]
    out = rail(s, t, layers=torch.tensor([0, 2]))
    close(out, torch.tensor([2.0]))
    assert torch.autograd.grad(out.sum(), s)[0].isfinite().all()


def test_universal_kd_ignores_the_student_shift():
    s, t = vectors((3, 2, 5), (3, 1, 5))
    close(universal_kd(s + 2.0, t), universal_kd(s, t))


def test_ckd_across_layers_is_ckd_across_words_of_a_transposed_stack():
    s, t = vectors((2, 5, 4, 6), (2, 5, 4, 7))
    close(layer_relation(s, t), word_relation(s, t).mean(-1))
    close(layer_angle(s, t), word_angle(s, t).mean(-1))


@pytest.mark.parametrize("loss", [word_angle, layer_angle, mgskd_angle])
def test_angles_ignore_similarity_transformations(loss):
    s, t = vectors((2, 5, 4), (2, 5, 4))
    rotation = torch.linalg.qr(normal(4, 4)(torch.Generator().manual_seed(3)))[0]
    close(loss(3 * s @ rotation + 1, t), loss(s, t))


def test_a_wide_window_is_no_window():
    s, t = vectors((2, 5, 4), (2, 5, 6))
    where = torch.tensor([[1, 1, 0, 1, 1], [1, 1, 1, 0, 0]])
    close(word_angle(s, t, window=4, where=where), word_angle(s, t, where=where))


def test_windowed_padding_changes_nothing():
    s, t = vectors((2, 6, 4), (2, 6, 4))
    where = (torch.arange(6) < 4).expand(2, 6)
    bad = [x.masked_fill(~where[..., None], torch.nan).requires_grad_() for x in (s, t)]
    out = word_angle(*bad, window=2, where=where)
    close(out[:, :4], word_angle(s[:, :4], t[:, :4], window=2))
    assert all((g[:, 4:] == 0).all() for g in torch.autograd.grad(out.sum(), bad))


@pytest.mark.parametrize("loss", [word_relation, word_angle, mgskd_pair, mgskd_angle])
def test_equal_and_few_tokens_have_finite_gradients(loss):
    for shape in [(2, 4, 3), (2, 1, 3)]:
        s = torch.ones(shape, requires_grad=True)
        t = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        for teacher in (t, s):
            out = loss(s, teacher)
            assert out.isfinite().all()
            assert torch.autograd.grad(out.sum(), s)[0].isfinite().all()


def test_salient_angles_of_padded_tokens():
    s, t = vectors((2, 7, 4), (2, 7, 6))
    where = (torch.arange(7) < 5).expand(2, 7)
    bad = [x.masked_fill(~where[..., None], torch.nan).requires_grad_() for x in (s, t)]
    out = mgskd_angle(*bad, vertices=3, neighbours=3, where=where)
    close(out, mgskd_angle(s[:, :5], t[:, :5], vertices=3, neighbours=3))
    assert all((g[:, 5:] == 0).all() for g in torch.autograd.grad(out.sum(), bad))
    assert (mgskd_angle(*bad, where=torch.zeros_like(where)) == 0).all()


def test_one_head_of_samples_is_rkd_angle():
    s, t = vectors((6, 4), (6, 5))
    where = torch.tensor([1, 1, 0, 1, 1, 1])
    close(mgskd_sample(s, t, where=where), rkd_angle(s, t, where=where))


def test_pooled_spans():
    (x,) = vectors((2, 5, 3))
    spans = torch.zeros(2, 3, 5, dtype=torch.bool)
    spans[:, 0, :2] = spans[:, 1, 3] = True  # span 2 is padding; tokens 2 and 4 are in no span
    x[:, 2], x[:, 4] = torch.nan, torch.inf
    pooled = pool_spans(x, spans)
    close(pooled[:, 0], x[:, :2].mean(1))
    close(pooled[:, 1], x[:, 3])
    assert (pooled[:, 2] == 0).all()


@pytest.mark.plain
@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: alp(x, x[..., :2]), "alp: student .* same batch and hidden size"),
        (lambda x: mix_layers(x, x, allowed=torch.ones(1, 4)), r"allowed .* \(1, 4\); \(4, 4\)"),
        (lambda x: rail(x, x, layers=torch.tensor([0])), r"layers \(1,\); \(4,\)"),
        (lambda x: word_relation(x, x[:, :2]), "word_relation: .* last axis only"),
        (lambda x: word_angle(x, x, window=0), "window 0"),
        (lambda x: mgskd_pair(x, x, relation_heads=4), "relation_heads 4; .* hidden size 3"),
        (lambda x: layer_angle(x, x, where=torch.ones(2, 4)), "where"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.rand(2, 4, 3))
