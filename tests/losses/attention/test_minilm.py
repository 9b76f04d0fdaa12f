"""Laws of the MiniLM relations."""

from __future__ import annotations

import math

import pytest
import torch

from fkd.losses import attention_scores_kl, minilm_relation

from ..case import normal
from ..laws import close


def vectors(*shapes, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [normal(*shape)(g) for shape in shapes]


def scores(x):
    """Of heads `[batch, head, length, head_dim]`."""
    return x @ x.mT / math.sqrt(x.shape[-1])


def test_relation_heads_equal_to_heads_is_per_head():
    s, t = vectors((2, 3, 5, 4), (2, 3, 5, 7))
    close(minilm_relation(s, t, relation_heads=3), attention_scores_kl(scores(s), scores(t)))


def test_split_heads_are_merged():
    s, t = vectors((2, 3, 5, 4), (2, 6, 5, 8))
    merged = [x.transpose(1, 2).flatten(2) for x in (s, t)]
    want = minilm_relation(*merged, relation_heads=12)
    close(minilm_relation(s, t, relation_heads=12), want)
    close(minilm_relation(s, merged[1], relation_heads=12), want)


@pytest.mark.parametrize("length", [5, 8])
@pytest.mark.parametrize("split", [True, False])
def test_padded_equals_unpadded(length, split):
    shape = (2, 3, 4, 6) if split else (2, 4, 18)
    short = [x.requires_grad_() for x in vectors(shape, shape)]
    want = minilm_relation(*short, relation_heads=6)
    want_grads = torch.autograd.grad(want.sum(), short)
    long = []
    for x in short:
        pad = torch.full((*shape[:-2], length - 4, shape[-1]), torch.nan, dtype=x.dtype)
        long.append(torch.cat([x.detach(), pad], -2).requires_grad_())
    where = (torch.arange(length) < 4).expand(2, length)
    out = minilm_relation(*long, relation_heads=6, where=where)
    close(out[:, :4], want)
    assert (out[:, 4:] == 0).all()
    for grad, want_grad in zip(torch.autograd.grad(out.sum(), long), want_grads, strict=True):
        close(grad[..., :4, :], want_grad)
        assert (grad[..., 4:, :] == 0).all()


def test_rotation_of_a_relation_head_changes_nothing():
    s, t = vectors((2, 5, 8), (2, 5, 8))
    rotation = torch.linalg.qr(normal(4, 4)(torch.Generator().manual_seed(3)))[0]
    turned = (s.unflatten(-1, (2, 4)) @ rotation).flatten(-2)
    close(minilm_relation(turned, t, relation_heads=2), minilm_relation(s, t, relation_heads=2))


def test_vmap():
    s, t = vectors((3, 5, 8), (3, 5, 4))
    where = torch.rand(3, 5, generator=torch.Generator().manual_seed(1)) < 0.7
    out = torch.vmap(lambda a, b, m: minilm_relation(a, b, relation_heads=2, where=m))(s, t, where)
    close(out, minilm_relation(s, t, relation_heads=2, where=where))


@pytest.mark.plain
@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: minilm_relation(x, x, relation_heads=5), "relation_heads 5; .* hidden size 8"),
        (lambda x: minilm_relation(x, x[:, :2], relation_heads=2), "batch and length"),
        (lambda x: minilm_relation(x[0, 0], x[0, 0], relation_heads=2), r"student_x \(8,\)"),
        (
            lambda x: minilm_relation(x, x, relation_heads=2, where=torch.ones(2)),
            r"where .* \(2,\); \(2, 3\)",
        ),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.rand(2, 3, 8))
