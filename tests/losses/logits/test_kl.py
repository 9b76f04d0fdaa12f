"""Identities, limits, bounds and messages of the divergences between logits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch._dynamo.testing import CompileCounter

from fkd.losses import (
    adaptive_kl,
    adaptive_kl_weight,
    alpha_divergence,
    jeffreys,
    jsd,
    kl,
    logit_mse,
    renyi,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    soft_cross_entropy,
    total_variation,
)

from ..laws import close

DIVERGENCES = [
    adaptive_kl,
    alpha_divergence,
    jeffreys,
    jsd,
    kl,
    renyi,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    total_variation,
]
INF = torch.inf


def two(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    s, t = (torch.randn(*shape, generator=g, dtype=torch.float64) for _ in range(2))
    return s, t


def probabilities(s: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return s.softmax(-1), t.softmax(-1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kl_is_cross_entropy_less_entropy(temperature: float) -> None:
    s, t = two(5, 7)
    entropy = torch.distributions.Categorical(logits=t / temperature).entropy()
    soft = soft_cross_entropy(s, t, temperature=temperature)
    close(kl(s, t, temperature=temperature), soft - temperature**2 * entropy)


def test_kl_agrees_with_torch() -> None:
    s, t = two(5, 7)
    want = F.kl_div(s.log_softmax(-1), t.log_softmax(-1), reduction="none", log_target=True)
    close(kl(s, t), want.sum(-1))


def test_kl_at_high_temperature_is_half_the_centred_logit_mse() -> None:
    s, t = two(5, 7)
    close(kl(s, t, temperature=1e4), logit_mse(s, t, center=True) / 2, rtol=1e-3)


def test_directions() -> None:
    s, t = two(5, 7)
    close(reverse_kl(s, t), kl(t, s))
    close(jeffreys(s, t), kl(s, t) + kl(t, s))
    close(jeffreys(s, t), jeffreys(t, s))
    close(skew_reverse_kl(s, t, skew=0.3), skew_kl(t, s, skew=0.3))
    close(jsd(s, t, beta=0.3), jsd(t, s, beta=0.7))
    close(renyi(s, t, alpha=0.5), renyi(t, s, alpha=0.5))
    close(alpha_divergence(s, t, alpha=0.3), alpha_divergence(t, s, alpha=0.7))
    close(total_variation(s, t), total_variation(t, s))


def test_jsd_ends() -> None:
    s, t = two(5, 7)
    zero = torch.zeros(5, dtype=torch.float64)
    close(jsd(s, t, beta=0.0), zero)
    close(jsd(s, t, beta=1.0), zero)
    close(jsd(s, t, beta=1e-6) / 1e-6, kl(s, t), rtol=1e-4)
    close(jsd(s, t, beta=1 - 1e-6) / 1e-6, reverse_kl(s, t), rtol=1e-4)


def test_jsd_and_skew_of_disjoint_distributions_reach_their_bounds() -> None:
    s, t = torch.tensor([[0.0, -INF]]), torch.tensor([[-INF, 0.0]])
    close(jsd(s, t, temperature=3.0), torch.tensor([9 * math.log(2)]), rtol=1e-6)
    close(
        jsd(s, t, beta=0.1), torch.tensor([-0.1 * math.log(0.1) - 0.9 * math.log(0.9)]), rtol=1e-6
    )
    close(skew_kl(s, t, skew=0.2), torch.tensor([-math.log(0.2)]), rtol=1e-6)
    close(total_variation(s, t), torch.tensor([1.0]))


def test_skew_tends_to_kl() -> None:
    s, t = two(5, 7)
    close(skew_kl(s, t, skew=0.0), kl(s, t))
    close(skew_reverse_kl(s, t, skew=0.0), reverse_kl(s, t))
    close(skew_kl(s, t, skew=1.0), torch.zeros(5), atol=1e-12)


def test_alpha_family() -> None:
    s, t = two(5, 7)
    q, p = probabilities(s, t)
    close(alpha_divergence(s, t, alpha=1.0), kl(s, t))
    close(alpha_divergence(s, t, alpha=0.0), reverse_kl(s, t))
    close(alpha_divergence(s, t, alpha=1 - 1e-9), kl(s, t), rtol=1e-7)
    close(alpha_divergence(s, t, alpha=0.5), 2 * (p.sqrt() - q.sqrt()).square().sum(-1))
    close(alpha_divergence(s, t, alpha=2.0), ((p - q).square() / q).sum(-1) / 2)


def test_renyi_family() -> None:
    s, t = two(5, 7)
    close(renyi(s, t, alpha=1.0), kl(s, t))
    close(renyi(s, t, alpha=1 + 1e-9), kl(s, t), rtol=1e-7)
    orders = torch.stack([renyi(s, t, alpha=a) for a in (0.2, 0.5, 0.9, 1.0, 2.0, 5.0)])
    assert (orders.diff(dim=0) > 0).all()


def test_renyi_keeps_digits_of_distant_distributions() -> None:
    s, t = torch.tensor([[60.0, 0.0]]), torch.tensor([[0.0, 60.0]])
    # -2 log(2 sqrt(p q)) with p = 1, q = exp(-60)
    close(renyi(s, t, alpha=0.5), torch.tensor([60 - 2 * math.log(2)]), rtol=1e-6)


def test_pinsker() -> None:
    s, t = two(20, 7)
    assert (total_variation(s, t).square() <= kl(s, t) / 2).all()


def test_adaptive_kl_between_its_ends() -> None:
    s, t = two(5, 7)
    close(adaptive_kl(s, t, forward_weight=torch.ones(5).double()), kl(s, t))
    close(adaptive_kl(s, t, forward_weight=torch.zeros(5).double()), reverse_kl(s, t))
    w = adaptive_kl_weight(s, t)
    assert ((w >= 0) & (w <= 1)).all()
    close(adaptive_kl(s, t, forward_weight=w), adaptive_kl(s, t))


def test_the_default_weight_is_held_constant_and_a_given_one_is_not() -> None:
    s, t = two(5, 7)
    s.requires_grad_()
    w = adaptive_kl_weight(s, t)
    (default,) = torch.autograd.grad(adaptive_kl(s, t).sum(), s)
    (through,) = torch.autograd.grad(
        adaptive_kl(s, t, forward_weight=w).sum(), s, retain_graph=True
    )
    (want,) = torch.autograd.grad((w.detach() * kl(s, t) + (1 - w).detach() * kl(t, s)).sum(), s)
    close(default, want)
    assert not torch.allclose(through, default)


@pytest.mark.parametrize("distance", [1e-2, 1e-3, 1e-4])
def test_adaptive_kl_near_convergence(distance: float) -> None:
    s, t = two(20, 50)
    s = t + distance * s
    single, double = (gradient(adaptive_kl, s.to(d), t.to(d)) for d in (torch.float32, s.dtype))
    assert (single - double).abs().max() < 2e-2 * double.abs().max()


def gradient(loss, s, t):
    s = s.clone().requires_grad_()
    return torch.autograd.grad(loss(s, t).sum(), s)[0]


NEAR = [kl, reverse_kl, jeffreys, jsd, soft_cross_entropy, adaptive_kl, alpha_divergence, renyi]


@pytest.mark.parametrize("loss", [*NEAR, skew_kl, skew_reverse_kl], ids=lambda f: f.__name__)
@pytest.mark.parametrize("distance", [0.15, 0.015])
def test_gradient_near_convergence_of_a_large_vocabulary(loss, distance: float) -> None:
    """The models of a language, nearly trained, in float32: the gradient keeps five digits."""
    s, t = two(4, 32_000)
    t = 3 * t
    t[:, 0] += 12
    s, t = (t + distance * s).float(), t.float()
    want = gradient(loss, s.double(), t.double())
    assert (gradient(loss, s, t) - want).abs().max() < 2e-5 * want.abs().max()


@pytest.mark.parametrize(
    "loss", [kl, reverse_kl, skew_kl, alpha_divergence], ids=lambda f: f.__name__
)
def test_not_negative_in_float32(loss) -> None:
    s, t = two(200, 100)
    assert (loss((t + 1e-3 * s).float(), t.float()) > 0).all()
    assert (loss(s.float(), t.float(), temperature=250.0) > 0).all()


@pytest.mark.plain
@pytest.mark.parametrize("loss", [*NEAR, logit_mse, total_variation], ids=lambda f: f.__name__)
def test_maps_have_their_classes_last(loss) -> None:
    x = torch.zeros(2, 5, 4, 4)
    with pytest.raises(ValueError, match=r"classes are expected last.*fkd.call\(torch.movedim"):
        loss(x, x)
    with pytest.raises(ValueError, match=r"classes are expected last.*fkd.call\(torch.movedim"):
        loss(x[..., :3], x[..., :3], where=torch.ones(2, 4, 3, dtype=torch.bool))
    assert loss(x.movedim(1, -1), x.movedim(1, -1)).shape == (2, 4, 4)
    assert loss(x.flatten(0, -2), x.flatten(0, -2)).shape == (40,)


@pytest.mark.parametrize("loss", [*DIVERGENCES, soft_cross_entropy], ids=lambda f: f.__name__)
def test_shift_of_logits_changes_nothing(loss) -> None:
    s, t = two(5, 7)
    shift = torch.arange(5.0, dtype=torch.float64)[:, None]
    close(loss(s + shift, t - 2 * shift), loss(s, t))


def test_centred_logit_mse_ignores_a_shift() -> None:
    s, t = two(5, 7)
    close(logit_mse(s + 3, t, center=True), logit_mse(s, t, center=True))
    close(logit_mse(s, t) - logit_mse(s, t, center=True), (s - t).mean(-1).square())


def test_logit_mse_of_classes_that_both_exclude() -> None:
    s, t = torch.tensor([[1.0, -INF, 0.0]]), torch.tensor([[0.0, -INF, 0.0]])
    s.requires_grad_()
    out = logit_mse(s, t)
    close(out, torch.tensor([1 / 3]), rtol=1e-6)
    assert torch.autograd.grad(out.sum(), s)[0].isfinite().all()
    close(logit_mse(s, t, center=True), torch.tensor([0.5 / 3]), rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "student", "teacher"),
    [
        (kl, [0.0, -INF], [0.0, 0.0]),
        (reverse_kl, [0.0, 0.0], [0.0, -INF]),
        (jeffreys, [0.0, 0.0], [0.0, -INF]),
        (soft_cross_entropy, [0.0, -INF], [0.0, 0.0]),
        (renyi, [0.0, -INF], [-INF, 0.0]),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_infinite_where_the_support_is_missing(loss, student, teacher) -> None:
    assert (loss(torch.tensor([student]), torch.tensor([teacher])) == INF).all()


@pytest.mark.parametrize("loss", DIVERGENCES, ids=lambda f: f.__name__)
def test_underflow_has_a_finite_gradient(loss) -> None:
    s = torch.tensor([[80.0, 0.0, -80.0, -INF]], requires_grad=True)
    t = torch.tensor([[0.0, 90.0, -90.0, -INF]], requires_grad=True)
    grads = torch.autograd.grad(loss(s, t, temperature=0.5).sum(), (s, t))
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("loss", [kl, jsd, reverse_kl], ids=lambda f: f.__name__)
def test_one_temperature_a_position(loss) -> None:
    s, t = two(2, 3, 7)
    warm = torch.tensor([[0.5, 1.0, 2.0], [3.0, 4.0, 5.0]], dtype=torch.float64)
    rows = [
        loss(s[i, j], t[i, j], temperature=warm[i, j].item()) for i in range(2) for j in range(3)
    ]
    close(loss(s, t, temperature=warm[..., None]), torch.stack(rows).reshape(2, 3))


@pytest.mark.parametrize("loss", DIVERGENCES, ids=lambda f: f.__name__)
@settings(max_examples=25, deadline=None)
@given(x=arrays(np.float64, (2, 3, 4), elements=st.floats(-20, 20)))
def test_divergence(loss, x) -> None:
    s, t = torch.from_numpy(x[0].copy()), torch.from_numpy(x[1].copy())
    out = loss(s, t)
    assert (out > -1e-12).all()
    close(loss(s, s.clone()), torch.zeros(3), atol=1e-12)
    if loss is not adaptive_kl:  # its head is not unique where the teacher has ties
        close(loss(s.flip(-1), t.flip(-1)), out, atol=1e-10)


@pytest.mark.plain
@pytest.mark.parametrize("loss", [*DIVERGENCES, soft_cross_entropy, logit_mse])
def test_messages(loss) -> None:
    x, name = torch.zeros(2, 3), loss.__name__
    with pytest.raises(ValueError, match=rf"{name}: student_logits \(2, 3\) and teacher_logits"):
        loss(x, torch.zeros(2, 1))
    with pytest.raises(ValueError, match=rf"{name}: teacher_logits has dtype torch.int64"):
        loss(x, torch.zeros(2, 3, dtype=torch.long))


def test_temperature_without_an_axis_for_the_classes_is_refused() -> None:
    x = torch.zeros(3, 3)
    said = r"temperature \(3,\);.*one for each position.*\[\.\.\., None\]"
    with pytest.raises(ValueError, match=said):
        kl(x, x, temperature=torch.ones(3))


@pytest.mark.compile
def test_a_changing_temperature_compiles_once() -> None:
    counter = CompileCounter()
    torch._dynamo.reset()
    step = torch.compile(lambda s, t, w: kl(s, t, temperature=w), backend=counter, fullgraph=True)
    s, t = two(5, 7)
    for w in (1.0, 2.0, 3.0, 4.0, 5.0):
        close(step(s, t, torch.tensor(w)), kl(s, t, temperature=w), rtol=1e-6)
    assert counter.frame_count == 1
