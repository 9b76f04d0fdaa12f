"""Precision of half inputs, and the errors that name a wrong argument."""

from __future__ import annotations

import inspect

import pytest
import torch

from fkd import losses
from fkd.losses import head
from fkd.losses.head import head_divergence, head_divergence_and_metrics, head_metrics

from .inputs import call, grads, heads


def test_a_nearly_converged_student_has_an_accurate_gradient():
    """bfloat16 inputs, student logits = teacher's + 0.05 sigma, against float64."""
    g = torch.Generator().manual_seed(0)
    tokens, vocab, features = 64, 2048, 64
    teacher = torch.randn(tokens, features, generator=g, dtype=torch.float64)
    weight = torch.randn(vocab, features, generator=g, dtype=torch.float64) * 3 / features**0.5
    noise = torch.randn(tokens, features, generator=g, dtype=torch.float64)
    x, xt, w = ((a).bfloat16() for a in (teacher + 0.05 * noise, teacher, weight))

    def gradient(dtype, **options):
        leaf = x.to(dtype).requires_grad_()
        inputs = leaf, w.to(dtype), xt.to(dtype), w.to(dtype)
        head_divergence(*inputs, divergence=head.kl(), **options).total.backward()
        return leaf.grad.double()

    exact = gradient(torch.float64, strategy="materialized")

    def error(got):
        return float((got - exact).norm() / exact.norm())

    assert error(gradient(torch.float32, strategy="chunked", chunk_size=24)) < 1e-4
    rounded = exact.bfloat16().double()  # what storing the gradient in bfloat16 costs
    float32 = error(gradient(torch.bfloat16, strategy="chunked", chunk_size=24))
    assert float32 < error(rounded) + 1e-4
    half = error(gradient(torch.bfloat16, strategy="chunked", logits_dtype=torch.bfloat16))
    assert half > 10 * float32


def test_half_precision_weights_accumulate_in_float32():
    given = heads(tokens=256, dtype=torch.bfloat16)
    wide = type(given)(*(x.double() if x.is_floating_point() else x for x in given))
    exact = grads(call(wide, head.kl(), strategy="materialized"), *wide[:3])
    got = grads(call(given, head.kl(), strategy="chunked", chunk_size=2), *given[:3])
    for x, y in zip(got[1:], exact[1:], strict=True):
        assert x.dtype == torch.bfloat16
        torch.testing.assert_close(x.double(), y.bfloat16().double(), rtol=2**-7, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"divergence": "kl"}, r"divergence 'kl' is neither .* Did you mean head.kl\(\)"),
        ({"divergence": head.kl}, r"divergence kl does not take .* call it: head.kl\(\)"),
        ({"divergence": head.jsd}, "divergence jsd does not take"),
        ({"divergence": lambda log_p: log_p}, "does not take"),
        ({"divergence": losses.kl}, r"elementwise\(kl\) gives .* one value for every entry"),
        ({"temperature": 0.0}, "temperature 0.0; a number above 0"),
        ({"temperature": float("nan")}, "temperature nan; a number above 0"),
        ({"student_softcap": -30.0}, "student_softcap -30.0; a number above 0"),
        ({"labels": torch.zeros(11)}, r"labels \(11,\) have dtype torch.float32; integers"),
        ({"where": torch.ones(11)}, "where has dtype torch.float32; bool or 0/1 integers"),
        ({"strategy": "fast"}, "strategy 'fast'; 'auto'"),
        ({"chunk_size": 0}, "chunk_size 0; 1 or more"),
        ({"divergence": head.cross_entropy()}, r"cross_entropy\(\) needs labels"),
        ({"strategy": "fused"}, "strategy 'fused' needs a CUDA device"),
        ({"teacher_vocabulary": slice(0, 9)}, "has 23 entries and teacher_weight 9"),
    ],
)
@pytest.mark.plain
def test_a_wrong_argument_is_named(change, message):
    x, w, _, xt, wt, _ = heads()
    with pytest.raises(ValueError, match=message):
        head_divergence(x, w, xt, wt, **{"divergence": head.kl(), **change})


@pytest.mark.plain
def test_wrong_shapes_are_named():
    x, w, _, xt, wt, labels = heads()
    options = {"divergence": head.kl()}
    with pytest.raises(ValueError, match=r"student_weight \(5, 23\) .* Is it transposed"):
        head_divergence(x, w.T, xt, wt, **options)
    with pytest.raises(ValueError, match="must have the same positions"):
        head_divergence(x, w, xt[:5], wt, **options)
    with pytest.raises(ValueError, match=r"labels \(5,\) must have the positions"):
        head_divergence(x, w, xt, wt, labels=labels[:5], **options)
    with pytest.raises(ValueError, match="needs teacher_hidden"):
        head_divergence(x, w, None, None, **options)


def test_a_teacher_that_requires_grad_is_refused():
    x, w, _, xt, wt, _ = heads()
    wt.requires_grad_()
    with pytest.raises(ValueError, match="teacher_weight requires grad"):
        head_divergence(x, w, xt, wt, divergence=head.kl(), strategy="chunked")
    head_divergence(x, w, xt, wt, divergence=head.kl(), strategy="materialized").total.backward()
    assert wt.grad is not None
    assert not head_metrics(x, w, xt, wt.detach(), divergence=head.kl())["kl()"].requires_grad


def test_a_divergence_is_added_to_divergences_only():
    with pytest.raises(TypeError, match="unsupported operand"):
        head.kl() + 1


@pytest.mark.parametrize("function", [head_metrics, head_divergence_and_metrics])
def test_the_three_functions_have_the_same_arguments(function):
    shown = inspect.signature(function).parameters
    assert list(shown) == list(inspect.signature(head_divergence).parameters)
    assert all(shown[n] == p for n, p in inspect.signature(head_divergence).parameters.items())
