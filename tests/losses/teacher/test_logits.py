"""Laws of the transforms of a teacher's logits and of the temperatures."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fkd.losses import (
    corrected_teacher,
    ctkd_temperature,
    cwsm_temperature,
    flsw_temperature,
    kl,
    probability_shift,
    replace_wrong,
    reverse_gradient,
    standardize,
    virtual_teacher,
)

from ..laws import close

INF = torch.inf


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


def test_standardize_has_mean_zero_and_deviation_one() -> None:
    z = standardize(logits(5, 7))
    close(z.mean(-1), torch.zeros(5).double())
    close(z.std(-1), torch.ones(5).double(), rtol=1e-6)
    close(standardize(3 * logits(5, 7) + 2), z, rtol=1e-6)


def test_standardize_leaves_excluded_classes_out() -> None:
    z = logits(2, 4)
    padded = torch.cat([z, torch.full((2, 1), -INF)], -1).requires_grad_()
    out = standardize(padded)
    close(out[:, :4], standardize(z))
    assert (out[:, 4] == -INF).all()
    assert torch.autograd.grad(out[:, :4].square().sum(), padded)[0].isfinite().all()


@pytest.mark.parametrize("shape", [(2, 4), (2, 1)])
def test_standardize_of_equal_logits_is_zero(shape: tuple[int, ...]) -> None:
    z = torch.full(shape, 3.0, requires_grad=True)
    out = standardize(z)
    assert (out == 0).all()
    assert torch.autograd.grad(out.sum(), z)[0].isfinite().all()


@pytest.mark.parametrize("always", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_corrected_teacher(threshold: float, always: bool) -> None:
    t = logits(6, 4)
    t[:2, :2] += torch.tensor([[4.0, 0.0], [0.0, 4.0]])  # two are right, by much
    p = corrected_teacher(t, LABELS, threshold=threshold, always=always).exp()
    close(p.sum(-1), torch.ones(6).double())
    label = F.one_hot(LABELS, 4).bool()
    lead = p[label] - p.masked_fill(label, -1.0).amax(-1)
    right = t.argmax(-1) == LABELS
    assert right.any()
    assert (~right).any()
    close(lead[~right], torch.full_like(lead[~right], threshold))
    if always:
        assert (lead >= threshold - 1e-12).all()
    else:
        close(p[right], t.softmax(-1)[right])


def test_probability_shift_is_an_exchange() -> None:
    t = logits(6, 4)
    out = probability_shift(t, LABELS)
    assert torch.equal(out.argmax(-1), LABELS)
    assert torch.equal(out.sort(-1)[0], t.sort(-1)[0])
    assert torch.equal(probability_shift(out, LABELS), out)


def test_replace_wrong() -> None:
    t = logits(6, 4)
    t[:2, :2] += torch.tensor([[4.0, 0.0], [0.0, 4.0]])
    out = replace_wrong(t, LABELS)
    right = t.argmax(-1) == LABELS
    assert right.sum() == 2
    assert torch.equal(out[right], t[right])
    close(out[~right], virtual_teacher(LABELS, 4, dtype=torch.float64)[~right])


@pytest.mark.parametrize("transform", [corrected_teacher, probability_shift, replace_wrong])
def test_positions_without_a_label_stay(transform) -> None:
    t = logits(6, 4).log_softmax(-1)
    close(transform(t, torch.full((6,), -100)), t)


def test_virtual_teacher() -> None:
    p = virtual_teacher(LABELS, 4, correct=0.7, dtype=torch.float64).exp()
    smoothed = 0.6 * F.one_hot(LABELS, 4).double() + 0.4 / 4  # label smoothing of 0.4
    close(p, smoothed)
    close(virtual_teacher(torch.tensor([-100]), 4).exp(), torch.full((1, 4), 0.25), rtol=1e-6)
    with pytest.raises(ValueError, match="num_classes is 1"):
        virtual_teacher(LABELS, 1)


def test_reverse_gradient_is_the_identity_forward() -> None:
    x = logits(5)
    assert torch.equal(reverse_gradient(x, scale=0.3), x)


@pytest.mark.parametrize("scale", [0.5, torch.tensor(0.5)], ids=["float", "tensor"])
def test_reverse_gradient_reverses(scale) -> None:
    x = logits(5)
    close(torch.func.grad(lambda x: reverse_gradient(x, scale=scale).square().sum())(x), -x)
    rows = torch.vmap(torch.func.grad(lambda x: reverse_gradient(x, scale=scale).square()))
    close(rows(x), -x)


@pytest.mark.compile
def test_reverse_gradient_reverses_when_compiled() -> None:
    def loss(x: torch.Tensor) -> torch.Tensor:
        return reverse_gradient(x, scale=0.5).square().sum()

    x = logits(5)
    compiled = torch.compile(torch.func.grad(loss), fullgraph=True, backend="aot_eager")
    close(compiled(x), -x)
    forward = torch.compile(loss, fullgraph=True, backend="aot_eager")
    y = x.clone().requires_grad_()
    close(torch.autograd.grad(forward(y), y)[0], -x)


def test_ctkd_raises_what_the_student_lowers() -> None:
    s, t = logits(5, 7), logits(5, 7, seed=1)
    g = torch.tensor(0.0, dtype=torch.float64)

    def loss(g: torch.Tensor, adversary: float) -> torch.Tensor:
        return kl(s, t, temperature=ctkd_temperature(g, adversary=adversary)).sum()

    forward = torch.func.grad(loss)(g, -1.0)  # minus one: the true gradient
    close(torch.func.grad(loss)(g, 1.0), -forward)
    close(torch.func.grad(loss)(g, 0.25), -0.25 * forward)
    close(ctkd_temperature(g - 100), torch.tensor(1.0).double())
    close(ctkd_temperature(g + 100), torch.tensor(21.0).double())


@pytest.mark.parametrize("make", [flsw_temperature, lambda s, t, **k: cwsm_temperature(s, **k)])
def test_batch_temperatures(make) -> None:
    s, t = logits(5, 7), logits(5, 7, seed=1)
    temperature = make(s, t, base=4.0, beta=0.5)
    assert temperature.shape == (5, 1)
    close(temperature.mean(), torch.tensor(4.0).double())
    close(make(s, t, base=4.0, beta=0.0), torch.full((5, 1), 4.0).double())
    where = torch.tensor([True, False, True, True, False])
    out = make(s.masked_fill(~where[:, None], torch.nan), t, base=4.0, beta=0.5, where=where)
    close(out[where], make(s[where], t[where], base=4.0, beta=0.5))
    close(out[~where], torch.full((2, 1), 4.0).double())
    rows = [kl(s[i], t[i], temperature=temperature[i].item()) for i in range(5)]
    close(kl(s, t, temperature=temperature), torch.stack(rows))


def test_flsw_of_zero_vectors_is_finite() -> None:
    s = torch.zeros(2, 3, requires_grad=True)
    out = flsw_temperature(s, torch.zeros(2, 3))
    assert torch.autograd.grad(out[0].sum(), s)[0].isfinite().all()


@pytest.mark.parametrize("gap", [5.0, 20.0, 120.0])
@pytest.mark.parametrize("always", [False, True])
@pytest.mark.parametrize("convention", ["paper", "code"])
def test_correcting_a_confident_teacher_has_a_finite_gradient(gap, always, convention) -> None:
    z = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    z[:, 0] += gap
    z.requires_grad_()
    labels = torch.tensor([0, 1, 2, 0, 4, -1])
    out = corrected_teacher(z, labels, threshold=0.2, always=always, convention=convention)
    finite = torch.where(out.isfinite(), out, 0.0)
    assert torch.autograd.grad(finite.sum(), z)[0].isfinite().all()
    close(out.exp().sum(-1), torch.ones(6), rtol=1e-5)
