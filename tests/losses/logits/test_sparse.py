"""Neighbours of the losses on a sparse teacher, and laws of its records."""

from __future__ import annotations

import pytest
import torch

from fkd.losses import (
    kl,
    sample,
    sampled_cross_entropy,
    sampled_kl,
    soft_cross_entropy,
    top_k,
    top_k_kl,
)

from ..laws import close

INF = torch.inf


def two(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    s, t = (torch.randn(*shape, generator=g, dtype=torch.float64) for _ in range(2))
    return s, t


@pytest.mark.parametrize("rest", ["tail", "renormalize", "truncate"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_whole_vocabulary_is_kl(rest: str, temperature: float) -> None:
    s, t = two(5, 9)
    teacher = top_k(t, 9, temperature=temperature)
    value = top_k_kl(s, *teacher, rest=rest, temperature=temperature)
    close(value, kl(s, t, temperature=temperature))


def test_the_tail_is_a_lower_bound_that_rises_with_k() -> None:
    s, t = two(5, 9)
    bounds = torch.stack([top_k_kl(s, *top_k(t, k)) for k in range(1, 10)])
    assert (bounds.diff(dim=0) >= -1e-12).all()
    assert (bounds <= kl(s, t) + 1e-12).all()


def test_truncation_may_be_negative_and_the_tail_is_not() -> None:
    s, t = torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    assert top_k_kl(s, *top_k(t, 1), rest="truncate") < 0
    assert top_k_kl(s, *top_k(t, 1)) > 0


def test_renormalize_needs_no_normalizer() -> None:
    s, t = two(5, 9)
    logits, ids = t.topk(3)
    close(
        top_k_kl(s, logits, ids, rest="renormalize"), top_k_kl(s, *top_k(t, 3), rest="renormalize")
    )


@pytest.mark.parametrize("rest", ["tail", "renormalize", "truncate"])
def test_unused_places_add_nothing(rest: str) -> None:
    s, t = two(5, 9)
    log_p, ids = top_k(t, 3)
    padded = torch.cat([log_p, torch.full((5, 2), -INF)], -1)
    padded_ids = torch.cat([ids, torch.zeros(5, 2, dtype=torch.long)], -1)
    close(top_k_kl(s, padded, padded_ids, rest=rest), top_k_kl(s, log_p, ids, rest=rest))


def test_the_expectation_over_the_draws_is_kl() -> None:
    s, t = two(5, 9)
    every = torch.arange(9).expand(5, 9)  # all outcomes, weighted by their probability
    p = t.softmax(-1)
    close(sampled_kl(s, t.log_softmax(-1), every, p), kl(s, t))
    close(sampled_cross_entropy(s, every, p), soft_cross_entropy(s, t))


@pytest.mark.parametrize("proposal", [1.0, 0.5])
def test_many_draws_come_near_kl_and_its_gradient(proposal: float) -> None:
    s, t = two(2, 9)
    s.requires_grad_()
    uniform = ((torch.arange(20000) + 0.5) / 20000).double().expand(2, -1)
    value = sampled_kl(s, *sample(t, uniform, proposal=proposal))
    close(value, kl(s, t), rtol=5e-3, atol=1e-3)
    (grad,) = torch.autograd.grad(value.sum(), s)
    (want,) = torch.autograd.grad(kl(s, t).sum(), s)
    close(grad, want, rtol=5e-3, atol=1e-3)


def test_weights_of_the_teacher_itself_are_equal() -> None:
    _, t = two(2, 9)
    uniform = torch.rand(2, 4, generator=torch.Generator().manual_seed(0))
    close(sample(t, uniform).weights, torch.full((2, 4), 0.25).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_excluded_classes_are_never_drawn(dtype: torch.dtype) -> None:
    t = torch.tensor([[-INF, 1.0, -INF, 0.5, -INF]], dtype=dtype)
    edge = torch.nextafter(torch.ones(()), torch.zeros(()))
    drawn = sample(t, torch.stack([torch.zeros(()), torch.tensor(0.5), edge])[None])
    assert drawn.ids.tolist() == [[1, 1, 3]]
    assert drawn.log_probs.isfinite().all()


def test_a_student_that_never_draws_a_class_is_no_nan() -> None:
    s = torch.tensor([[0.0, -INF, 0.0]], requires_grad=True)
    ids, weights = torch.tensor([[0, 1]]), torch.tensor([[1.0, 0.0]])
    out = sampled_cross_entropy(s, ids, weights)
    assert torch.autograd.grad(out.sum(), s)[0].isfinite().all()


@pytest.mark.plain
def test_messages() -> None:
    s, t = two(2, 9)
    log_p, ids = top_k(t, 3)
    with pytest.raises(ValueError, match=r"top_k: k is 10; .* vocabulary, 9"):
        top_k(t, 10)
    with pytest.raises(ValueError, match="rest is 'head'; 'tail', 'renormalize' or 'truncate'"):
        top_k_kl(s, log_p, ids, rest="head")
    with pytest.raises(ValueError, match=r"top_k_kl: teacher_ids \(2, 2\) must have the shape"):
        top_k_kl(s, log_p, ids[:, :2])
    with pytest.raises(ValueError, match=r"sample: uniform \(3, 4\) must have the leading shape"):
        sample(t, torch.zeros(3, 4))


@pytest.mark.compile
def test_records_compile() -> None:
    _, t = two(2, 9)
    uniform = torch.rand(2, 4, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(sample, fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(t, uniform), sample(t, uniform), strict=True):
        close(got, want)


@pytest.mark.parametrize("ids", [torch.uint16, torch.uint32, torch.int32], ids=str)
def test_small_integers_are_ids(ids: torch.dtype) -> None:
    s, t = two(5, 9)
    where = torch.tensor([True, True, False, True, True])
    kept = top_k(t, 4)
    small = kept._replace(ids=kept.ids.to(ids))
    close(top_k_kl(s, *small, where=where), top_k_kl(s, *kept, where=where))
    drawn = torch.ones(5, 4, dtype=torch.float64)
    close(
        sampled_cross_entropy(s, small.ids, drawn, where=where),
        sampled_cross_entropy(s, kept.ids, drawn, where=where),
    )
