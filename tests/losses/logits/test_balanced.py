"""Laws of the alpha-beta family, of ToDi and of TAID beyond the battery."""

from __future__ import annotations

import pytest
import torch

import fkd
from fkd import student, teacher, term
from fkd.losses import (
    ab_divergence,
    alpha_divergence,
    jeffreys,
    kl,
    reverse_kl,
    taid,
    taid_init,
    todi,
)

from ..case import pair
from ..laws import close


def logits(seed=0, scale=1.0):
    return pair(4, 6, scale=scale)(torch.Generator().manual_seed(seed))


def gradient(loss, s, t, **kwargs):
    s = s.clone().requires_grad_()
    out = loss(s, t, **kwargs)
    values = out[0] if isinstance(out, tuple) else out
    return torch.autograd.grad(values.sum(), s)[0]


def test_the_corners_and_the_edge_of_the_alpha_beta_family():
    s, t = logits()
    close(ab_divergence(s, t, alpha=1.0, beta=0.0), kl(s, t))
    close(ab_divergence(s, t, alpha=0.0, beta=1.0), reverse_kl(s, t))
    for alpha in (0.25, 0.5, 2.0):
        ours = ab_divergence(s, t, alpha=alpha, beta=1.0 - alpha)
        close(ours, alpha_divergence(s, t, alpha=alpha), rtol=1e-8)
    close(ab_divergence(s, t, alpha=0.3, beta=0.6), ab_divergence(t, s, alpha=0.6, beta=0.3))


def test_the_family_is_continuous_at_its_limits():
    s, t = logits()
    for alpha, beta in ((0.0, 0.7), (0.7, 0.0), (0.5, -0.5), (0.0, 0.0)):
        beside = ab_divergence(s, t, alpha=alpha + 1e-6, beta=beta + 1e-6)
        close(beside, ab_divergence(s, t, alpha=alpha, beta=beta), rtol=1e-4, atol=1e-5)


def test_far_apart_in_float32_there_is_no_overflow():
    s, t = (x.float() for x in logits(scale=60.0))
    for alpha, beta in ((1.0, 0.5), (0.2, 0.7), (2.0, 1.0)):
        assert ab_divergence(s, t, alpha=alpha, beta=beta).isfinite().all()
        assert gradient(ab_divergence, s, t, alpha=alpha, beta=beta).isfinite().all()


def test_todi_has_the_value_of_jeffreys_and_the_gradient_of_its_weights():
    s, t = logits()
    close(todi(s, t), jeffreys(s, t))
    p, q = t.softmax(-1), s.softmax(-1)
    held = p / (p + q)
    close(gradient(todi, s, t), gradient(todi, s, t, forward_weight=held))
    assert not torch.allclose(gradient(todi, s, t), gradient(jeffreys, s, t))
    everywhere = torch.ones_like(s)
    close(todi(s, t, forward_weight=everywhere), kl(s, t))
    close(todi(s, t, forward_weight=1 - everywhere), reverse_kl(s, t))


@pytest.mark.plain
def test_todi_says_what_weight_it_expects():
    s, t = logits()
    with pytest.raises(ValueError, match=r"forward_weight \(4,\); \(4, 6\) is expected"):
        todi(s, t, forward_weight=torch.ones(4))


def test_taid_begins_at_the_student_and_ends_at_the_teacher():
    s, t = logits()
    close(taid(s, t, state=taid_init(0.0))[0], torch.zeros(4))
    close(taid(s, t, state=taid_init(1.0))[0], kl(s, t))
    mixed = torch.lerp(s, t, 0.3).detach()
    close(gradient(taid, s, t, state=taid_init(0.3)), gradient(kl, s, mixed), rtol=1e-6)


def test_taid_moves_as_published():
    s, t = logits()
    values, first = taid(s, t, state=taid_init(0.4), floor=0.5)
    assert first.t == taid_init(0.4).t and first.momentum == 0  # nothing is known yet
    close(first.loss, values.mean().float())
    near = torch.lerp(s, t, 0.5)
    better, second = taid(near, t, state=first, rate=0.1, momentum=0.9)
    change = (first.loss - better.mean().float()) / first.loss
    assert change > 0
    close(second.momentum, 0.1 * change, rtol=1e-5)
    close(second.t, 0.4 + 0.1 * torch.sigmoid(0.1 * change) * 0.6, rtol=1e-6)
    assert taid(near, t, state=first, floor=0.8)[1].t == torch.tensor(0.8)
    assert taid(near, t, state=first, floor=0.8, ceiling=0.7)[1].t == torch.tensor(0.7)


def test_a_batch_that_counts_nowhere_moves_nothing():
    s, t = logits()
    _, known = taid(s, t, state=taid_init(0.4))
    nothing = torch.zeros(4, dtype=torch.bool)
    values, after = taid(s, t, state=known, where=nothing)
    assert (values == 0).all()
    assert all(torch.equal(a, b) for a, b in zip(after, known, strict=True))


def test_a_student_learns_under_taid_and_t_grows():
    torch.manual_seed(0)
    net, large = torch.nn.Linear(4, 5), torch.nn.Linear(4, 5)
    floor = fkd.schedules.linear(0.4, 1.0, steps=20)
    terms = {"taid": term(taid, student.logits, teacher.logits, state=taid_init(0.4), floor=floor)}
    terms["kl"] = fkd.metric(kl, student.logits, teacher.logits)
    objective = fkd.Objective(terms, student=fkd.trainable(net), teacher=fkd.frozen(large))
    step = fkd.loops.train_step(objective, lambda p: torch.optim.SGD(p, lr=1.0), compile=False)
    state, first, measured = step.init(seed=0), None, {}
    for _ in range(20):
        state, measured = step(state, torch.randn(16, 4))
        first = measured["loss/kl"] if first is None else first
    assert first is not None and measured["loss/kl"] < 0.5 * first
    inner = state.loss_state["taid"]
    assert isinstance(inner, fkd.losses.TAIDState) and inner.t > 0.9
