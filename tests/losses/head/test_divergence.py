"""Divergences are values: algebra, printing, errors; and they are the losses of `fkd.losses`."""

from __future__ import annotations

import pytest
import torch

from fkd import losses
from fkd.losses import head
from fkd.losses.head import head_metrics

from .inputs import heads


def test_sums_and_multiples_distribute_over_the_terms():
    both = 2 * (head.kl() + 3 * head.cross_entropy())
    assert [w for w, _ in both.terms] == [2, 6]
    assert both.atoms == head.kl().atoms + head.cross_entropy().atoms


def test_prints_as_the_code_that_makes_it():
    text = "0.9 * kl() + 0.1 * jsd(0.3)"
    assert repr(0.9 * head.kl() + 0.1 * head.jsd(0.3)) == text
    names = {name: getattr(head, name) for name in ("kl", "jsd")}
    assert repr(eval(text, names)) == text


@pytest.mark.parametrize(
    ("divergence", "loss", "knobs"),
    [
        (head.kl(), losses.kl, {}),
        (head.reverse_kl(), losses.reverse_kl, {}),
        (head.soft_cross_entropy(), losses.soft_cross_entropy, {}),
        (head.jsd(0.3), losses.jsd, {"beta": 0.3}),
        (head.skew_kl(0.2), losses.skew_kl, {"skew": 0.2}),
        (head.skew_reverse_kl(0.2), losses.skew_reverse_kl, {"skew": 0.2}),
        (head.total_variation(), losses.total_variation, {}),
        (head.alpha_divergence(0.5), losses.alpha_divergence, {"alpha": 0.5}),
    ],
    ids=lambda value: value.__name__ if callable(value) else repr(value),
)
@pytest.mark.parametrize("strategy", ["materialized", "chunked"])
def test_values_are_those_of_the_loss_of_the_same_name(divergence, loss, knobs, strategy):
    x, w, _, xt, wt, _ = heads()
    values = head_metrics(
        x, w, xt, wt, divergence=divergence, temperature=2.0, strategy=strategy, chunk_size=4
    )
    expected = loss(x @ w.T, xt @ wt.T, temperature=2.0, **knobs)
    torch.testing.assert_close(values[repr(divergence)], expected)


@pytest.mark.parametrize("strategy", ["materialized", "chunked"])
def test_cross_entropy_and_z_loss_ignore_the_temperature(strategy):
    x, w, _, xt, wt, labels = heads()
    values = head_metrics(
        x,
        w,
        xt,
        wt,
        divergence=head.cross_entropy() + head.z_loss(),
        labels=labels,
        temperature=3.0,
        strategy=strategy,
    )
    logits = x @ w.T
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(values["cross_entropy()"], expected)
    torch.testing.assert_close(values["z_loss()"], logits.logsumexp(-1) ** 2)


def test_metrics_are_entropies_and_agreement():
    x, w, _, xt, wt, _ = heads(tokens=40, vocab=3)
    values = head_metrics(x, w, xt, wt, divergence=head.kl(), temperature=2.0)
    for name, logits in {"student_entropy": x @ w.T, "teacher_entropy": xt @ wt.T}.items():
        expected = torch.distributions.Categorical(logits=logits / 2.0).entropy()
        torch.testing.assert_close(values[name], expected)
    agree = (x @ w.T).argmax(-1) == (xt @ wt.T).argmax(-1)
    assert 0 < agree.sum() < agree.numel()
    assert torch.equal(values["agreement"], agree.double())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: head.jsd(1.0), r"jsd: beta 1.0; 0 < beta < 1"),
        (lambda: head.skew_kl(0.0), r"skew_kl: skew 0.0; .* Use kl\(\)"),
        (lambda: head.alpha_divergence(1.0), r"alpha 1.0 divides by zero; .* Use kl\(\)"),
        (lambda: head.alpha_divergence(0.0), r"alpha 0.0 divides by zero; .* Use reverse_kl\(\)"),
    ],
)
def test_a_parameter_outside_its_range_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
