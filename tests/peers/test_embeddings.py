"""Losses of embeddings and scores beside those of sentence-transformers 6 and others."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fkd.losses import cosine, infonce, jeffreys, jsd, kl, l2, listwise_kl, margin_mse, mse


def two(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=g, dtype=torch.float64) for _ in range(2)]


def same(a, b, rtol=1e-9):
    torch.testing.assert_close(a, b, rtol=rtol, atol=1e-12)


def of_sentence_transformers(name: str) -> Any:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    return getattr(losses, name)


def test_margin_mse_of_several_negatives():
    """Theirs takes embeddings, and forms the scores."""
    query, positive = two(4, 6)
    negatives = two(4, 6, seed=1)
    labels = two(4, 3, seed=2)[0]
    loss = of_sentence_transformers("MarginMSELoss")(None)
    value = loss.compute_loss_from_embeddings([query, positive, *negatives], labels)
    scores = torch.stack([(query * x).sum(-1) for x in (positive, *negatives)], -1)
    same(margin_mse(scores, labels).mean(), value)


def test_listwise_kl_is_scaled_by_the_square_of_the_temperature_there():
    query, positive = two(4, 6)
    negatives = two(4, 6, seed=1)
    labels = two(4, 3, seed=2)[0]
    loss = of_sentence_transformers("DistillKLDivLoss")(None, temperature=2.0)
    value = loss.compute_loss_from_embeddings([query, positive, *negatives], labels)
    scores = torch.stack([(query * x).sum(-1) for x in (positive, *negatives)], -1)
    same(listwise_kl(scores, labels, temperature=2.0).mean(), value)


@pytest.mark.parametrize("metric, ours", [("mse", mse), ("l2", l2), ("cosine", cosine)])
def test_embed_distill(metric, ours):
    s, t = two(5, 8)
    make = of_sentence_transformers("EmbedDistillLoss")
    loss = make.__new__(make)
    torch.nn.Module.__init__(loss)
    loss.distance_metric, loss.projection = metric, None
    same(ours(s, t).mean(), loss.compute_loss_from_embeddings([s], [t]))


def test_kl_and_jsd_of_torchmetrics():
    """Theirs take probabilities, (teacher, student), and the mean over the batch."""
    functional = pytest.importorskip("torchmetrics.functional.regression")
    s, t = two(5, 7)
    p, q = t.softmax(-1), s.softmax(-1)
    same(kl(s, t).mean(), functional.kl_divergence(p, q), rtol=1e-6)
    both = functional.kl_divergence(p, q) + functional.kl_divergence(q, p)
    same(jeffreys(s, t).mean(), both, rtol=1e-6)
    if hasattr(functional, "js_divergence") and callable(functional.js_divergence):
        same(jsd(s, t).mean(), functional.js_divergence(p, q), rtol=1e-6)


def test_infonce_is_ntxent_with_the_teacher_as_the_reference():
    """In its usual form, of both views at once, samples of the same view are negatives, too."""
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    from torch.nn.functional import normalize

    s, t = two(5, 8)
    labels = torch.arange(5)
    value = losses.NTXentLoss(temperature=0.2)(s, labels, ref_emb=t, ref_labels=labels.clone())
    same(infonce(s, t, temperature=0.2).mean(), value, rtol=1e-6)
    scores = normalize(s) @ normalize(t).T / 0.2
    same(torch.nn.functional.cross_entropy(scores, labels), value, rtol=1e-6)
